"""The needle workload keeps its promises for any tokenizer: length, depth, spans, pairing, refusals."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from probe.errors import NotAvailable, UsageError
from probe.sample import Sample
from probe.workloads.haystack import haystack_sentences, split_sentences
from probe.workloads.lexicon import CITIES, NUMBERS, words
from probe.workloads.needle import Cell, needle

PROSE = """Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse, I
thought I would sail about a little and see the watery part of the world. It is a way I have of driving off the spleen.
"Is it?" he asked. Yes!

There is nothing surprising in this. If they but knew it, almost all men in their degree, some time or other, cherish
very nearly the same feelings towards the ocean with me. 東京は大きい。Über den Wolken…
"""


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@cache
def word_level() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(("<unk>", *words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=False)


@cache
def byte_level(vocabulary: int = 600, special: str = "") -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on prose and needles; `special` is a post-processing template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROSE, "The magic number for Zurich is 12. What is it?"] * 3, trainer)
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=special, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return wrapped(tokenizer)


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """A BPE in the manner of SentencePiece: the space belongs to the word after it, one is put before the text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([PROSE, " ".join(words())], trainer)
    return wrapped(tokenizer)


TOKENIZERS = {
    "word": word_level,
    "bytes": byte_level,
    "bytes, tiny": lambda: byte_level(300),
    "bytes, beginning and end": lambda: byte_level(600, "<s> $A </s>"),
    "metaspace": metaspace,
}


def one(tokenizer: PreTrainedTokenizerFast, cell: Cell, **fields: object) -> Sample:
    workload = needle((cell.length,), (cell.depth,), samples=cell.seed + 1, **fields)  # type: ignore[arg-type]
    return next(workload.build(tokenizer, [cell]))


def tokens_of(tokenizer: PreTrainedTokenizerFast, sentence: str) -> int:
    return len(tokenizer(f" {sentence}", add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(length=st.integers(180, 900), depth=st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.87, 1.0]), seed=st.integers(0, 40))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_tokens_of_a_span_decode_to_the_text_of_the_span(kind: str, length: int, depth: float, seed: int) -> None:
    tokenizer = TOKENIZERS[kind]()
    sample = one(tokenizer, Cell(length, depth, seed))
    city = sample.facts["city"]
    value = sample.answer.strip()

    def decoded(name: str) -> str:
        span = sample.span(name)
        return str(tokenizer.decode(sample.tokens[span.start : span.stop])).strip()

    assert decoded("needle") == f"The magic number for {city} is {value}."
    # In a vocabulary without pre-tokenization of punctuation the last number's token may reach over the full stop.
    assert decoded("needle_value").removesuffix(".") == value
    assert decoded("question") == f"What is the magic number for {city}? The magic number for {city} is"
    for index in range(sample.facts["num_distractors"]):
        assert re.fullmatch(rf"The magic number for (?!{city})\w+ is( \d\d){{4}}\.", decoded(f"distractor_{index}"))
    assert str(tokenizer.decode(sample.answer_tokens)).strip() == value
    assert sample.span("question").stop == len(sample.tokens)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("length", [128, 250, 1000])
@pytest.mark.parametrize("condition", ["present", "absent"])
def test_the_length_is_met_to_within_one_sentence_and_never_exceeded(kind: str, length: int, condition: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    for sample in needle((length,), (0.0, 0.5, 1.0), samples=6, needle=condition).build(tokenizer):  # type: ignore[arg-type]
        following = list_of_sentences(sample, sample.facts["haystack_sentences"] + 1)[-1]
        assert len(sample.tokens) == sample.facts["num_tokens"] <= length
        # A tokenizer that puts a space before a text counts the lone sentence's twice.
        assert len(sample.tokens) + tokens_of(tokenizer, following) + 1 > length


def list_of_sentences(sample: Sample, count: int) -> list[str]:
    rng = random.Random(f"{sample.facts['workload_seed']}/{sample.name}/haystack")
    source = haystack_sentences(sample.facts["haystack"], rng)
    return [next(source)[0] for _ in range(count)]


@pytest.mark.parametrize("kind", ["word", "bytes, beginning and end"])
def test_depth_0_is_first_and_depth_1_is_right_before_the_question(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    for sample in needle((300,), (0.0, 1.0), samples=5).build(tokenizer):
        if sample.facts["needle_depth"] == 0:
            assert sample.text.startswith(f"The magic number for {sample.facts['city']}")
        else:
            assert sample.span("needle").stop == sample.span("question").start
        assert sample.facts["achieved_depth"] == sample.facts["needle_depth"]


def test_depth_is_the_share_of_the_haystack_before_the_needle() -> None:
    for sample in needle((4000,), tuple(i / 10 for i in range(11)), samples=2).build(word_level()):
        before, _, after = sample.text.partition(f"The magic number for {sample.facts['city']} is {sample.answer[1:]}.")
        after = after.split("What is")[0]
        words_before, words_after = (len(re.findall(r"\w+|[^\w\s]", part)) for part in (before, after))
        assert sample.facts["achieved_depth"] == pytest.approx(words_before / (words_before + words_after), abs=1e-9)
        assert sample.facts["achieved_depth"] == pytest.approx(sample.facts["needle_depth"], abs=0.005)


def test_a_sample_depends_on_its_cell_alone() -> None:
    tokenizer = word_level()
    grid = needle((64, 200), (0.0, 0.5, 1.0), samples=3)
    whole = {sample.name: sample for sample in grid.build(tokenizer)}
    assert len(whole) == len(grid.cells()) == 18
    backwards = needle((200, 64), (1.0, 0.5), samples=2)
    for sample in backwards.build(tokenizer, reversed(backwards.cells())):
        assert sample == whole[sample.name]
    assert next(iter(whole)) == "needle-64-0.00-s0"
    assert "needle-200-0.50-s2" in whole


def test_another_process_builds_the_same_samples() -> None:
    code = (
        "import sys; from probe.workloads.needle import Cell, needle, _plan;"
        "print(_plan(needle(seed=3), Cell(256, 0.5, 1)).needle);"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    lines = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    here = one(word_level(), Cell(256, 0.5, 1), seed=3)
    assert lines == {f"The magic number for {here.facts['city']} is {here.answer[1:]}.\n"}


def test_another_seed_gives_another_sample() -> None:
    assert one(word_level(), Cell(256, 0.5, 0), seed=1).text != one(word_level(), Cell(256, 0.5, 0), seed=2).text


@pytest.mark.parametrize("kind", ["word", "bytes"])
def test_samples_of_one_name_pair_across_conditions(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    present = needle((256,), (0.3,), samples=4)
    for there, absent, alone, clear in zip(
        present.build(tokenizer),
        replace(present, needle="absent").build(tokenizer),
        replace(present, haystack="none").build(tokenizer),
        replace(present, distractors=0).build(tokenizer),
        strict=True,
    ):
        assert there.name == absent.name == alone.name == clear.name
        assert there.answer_tokens == absent.answer_tokens == alone.answer_tokens == clear.answer_tokens
        sentence = f"The magic number for {there.facts['city']} is {there.answer[1:]}."
        question = f"What is the magic number for {there.facts['city']}? The magic number for {there.facts['city']} is"
        assert there.text.count(sentence) == clear.text.count(sentence) == 1
        assert there.answer not in absent.text
        assert [span.name for span in absent.spans if span.name.startswith("needle")] == []
        assert alone.text == f"{sentence} {question}"
        assert there.facts["num_distractors"] == absent.facts["num_distractors"]
        assert clear.text.count("magic number") == 3
        assert there.text.split(". ")[-1] == absent.text.split(". ")[-1] == question
        assert absent.facts["achieved_depth"] is None


def test_numbers_and_cities_stand_in_a_text_once() -> None:
    for sample in needle((700,), (0.5,), samples=10, distractors=21).build(word_level()):
        numbers = re.findall(r"\d+", sample.text)
        cities = re.findall(r"number for (\w+) is", sample.text)[:-1]
        assert len(numbers) == len(set(numbers)) == 88
        assert len(cities) == len(set(cities)) == 22
        assert set(numbers) <= set(NUMBERS)
        assert set(cities) <= set(CITIES)


@pytest.mark.parametrize(("length", "expected"), [(33, 0), (64, 1), (128, 3), (256, 7), (512, 7), (2048, 7)])
def test_one_distractor_for_32_tokens_less_one_and_at_most_7(length: int, expected: int) -> None:
    assert one(word_level(), Cell(length, 0.5, 0)).facts["num_distractors"] == expected


def test_distractors_by_rule_give_way_where_tokens_are_short() -> None:
    tokenizer = byte_level(300)
    least = int(re.search(r"tokenizer (\d+) tokens", refusal(needle((1,), (0.5,), samples=1), tokenizer))[1])  # type: ignore[index]
    assert one(tokenizer, Cell(least + 3, 0.5, 0)).facts["num_distractors"] == 0


def refusal(workload: needle, tokenizer: object) -> str:
    with pytest.raises(UsageError) as caught:
        workload.build(tokenizer)
    return str(caught.value)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_needle_that_cannot_fit_is_refused_with_the_length_that_holds_it(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    message = refusal(needle((8, 256), (0.5,), samples=4), tokenizer)
    least = int(re.search(r"tokenizer (\d+) tokens", message)[1])  # type: ignore[index]
    assert "do not fit into 8 tokens" in message
    assert all(len(sample.tokens) <= least for sample in needle((least,), (0.5,), samples=30).build(tokenizer))


def test_distractors_that_were_asked_for_are_never_dropped() -> None:
    assert "distractors" in refusal(needle((64,), (0.5,), samples=1, distractors=7), word_level())
    assert one(word_level(), Cell(110, 0.5, 0), distractors=7).facts["num_distractors"] == 7


def test_special_tokens_are_counted_and_those_appended_are_left_out() -> None:
    plain, framed = byte_level(600), byte_level(600, "<s> $A </s>")
    for with_frame in needle((200,), (0.0, 0.5), samples=3).build(framed):
        assert with_frame.tokens[0] == 0
        assert 1 not in with_frame.tokens
        assert with_frame.facts["stripped_special_tokens"] == 1
        assert with_frame.tokens[1:] == tuple(plain(with_frame.text)["input_ids"])
        assert len(with_frame.tokens) <= 200


def test_the_answer_follows_the_prompt_token_by_token() -> None:
    for kind in TOKENIZERS:
        tokenizer = TOKENIZERS[kind]()
        sample = one(tokenizer, Cell(200, 0.5, 0))
        whole = tokenizer(sample.text + sample.answer, add_special_tokens=False)["input_ids"]
        assert tuple(whole[-len(sample.answer_tokens) :]) == sample.answer_tokens
        assert sample.answer.startswith(" ")


def test_a_tokenizer_that_merges_prompt_and_answer_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"is \d"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=[chr(i) for i in range(32, 127)], show_progress=False
    )
    tokenizer.train_from_iterator([f"is {digit}" for digit in range(10)] * 5, trainer)
    with pytest.raises(UsageError, match="merges the end of the prompt"):
        list(needle((400,), (0.5,), samples=1).build(wrapped(tokenizer)))


def test_a_tokenizer_without_offsets_is_refused_by_name() -> None:
    class Slow:
        is_fast = False
        name_or_path = "some/model"

    assert "some/model" in refusal(needle(), Slow())


def test_a_text_file_is_the_haystack_and_repeats_where_it_is_short(tmp_path: Path) -> None:
    file = tmp_path / "prose.txt"
    file.write_text(PROSE, encoding="utf-8")
    tokenizer = byte_level()
    short, long = (one(tokenizer, Cell(length, 0.5, 0), haystack=str(file)) for length in (150, 3000))
    assert short.facts["haystack_repeats"] == 0
    assert long.facts["haystack_repeats"] == (long.facts["haystack_sentences"] - 1) // 9 > 1
    assert long.facts["haystack"] == "prose.txt"
    assert long.text.count("Call me Ishmael.") >= long.facts["haystack_repeats"]
    assert 3000 - 150 < len(long.tokens) <= 3000
    unknown = one(word_level(), Cell(300, 0.5, 0), haystack=str(file)).facts["unknown_tokens"]
    assert 0.3 < unknown < 1
    assert one(word_level(), Cell(300, 0.5, 0)).facts["unknown_tokens"] == 0


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "prose.txt"
    file.write_text("One day it rained. ", encoding="utf-8")
    assert "One day" in one(byte_level(), Cell(150, 0.5, 0), haystack=str(file)).text
    file.write_text("Another day it snowed again.", encoding="utf-8")
    assert "One day" not in one(byte_level(), Cell(150, 0.5, 0), haystack=str(file)).text


@pytest.mark.parametrize(
    ("content", "error"), [(None, NotAvailable), (b"\xff\xfe\x00", NotAvailable), (b" \n\n ", UsageError)]
)
def test_a_haystack_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, error: type) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(error, match=r"text\.txt"):
        needle(haystack=str(file)).build(word_level())


def test_sentences_of_prose() -> None:
    assert [sentence[:12] for sentence in split_sentences(PROSE)] == [
        "Call me Ishm",
        "Some years a",
        "It is a way ",
        '"Is it?" he ',
        "Yes!",
        "There is not",
        "If they but ",
        "東京は大きい。",
        "Über den Wol",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lengths": ()}, "lengths"),
        ({"lengths": (0,)}, "lengths"),
        ({"depths": (1.2,)}, "depths"),
        ({"depths": (0.501, 0.502)}, "decimals"),
        ({"lengths": (64, 64)}, "differ"),
        ({"samples": 0}, "samples"),
        ({"distractors": 22}, "between 0 and 21"),
        ({"distractors": -1}, "between 0 and 21"),
        ({"needle": "gone"}, "present or absent"),
        ({"haystack": ""}, "haystack"),
    ],
)
def test_a_field_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        needle(**fields)  # type: ignore[arg-type]


def test_every_word_that_a_text_uses_is_in_the_lexicon() -> None:
    known = set(words())
    for sample in needle((4000,), (0.5,), samples=3).build(word_level()):
        assert set(re.findall(r"\w+|[^\w\s]", sample.text)) <= known


def test_a_text_of_131072_tokens_is_made_in_seconds_and_hardly_repeats_a_sentence() -> None:
    begin = time.perf_counter()
    sample = one(byte_level(), Cell(131072, 0.5, 0))
    assert time.perf_counter() - begin < 20
    assert 131072 - 60 < len(sample.tokens) <= 131072
    sentences = re.split(r"(?<=\.) ", sample.text)
    assert len(set(sentences)) > 0.95 * len(sentences)


def test_a_sample_survives_json() -> None:
    sample = one(byte_level(), Cell(256, 0.5, 0))
    assert Sample.from_json(sample.to_json()) == sample

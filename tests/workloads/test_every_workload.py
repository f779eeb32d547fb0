"""What every workload promises, for every kind of tokenizer."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from probe import discovery
from probe.casebook import build
from probe.errors import CasebookError, UsageError
from probe.private import withheld_sample
from probe.sample import Sample
from probe.success import judge
from probe.workloads.marked_text import MarkedText

ROOT = Path(__file__).resolve().parent.parent.parent

# What makes each of them fit where a token is hardly more than a character, and by how much a length may be missed.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "needle": ({"depths": [0.5]}, 90),
    "passkey": ({"depths": [0.3]}, 40),
    "key_values": ({"depths": [0.7]}, 140),
    "needles": ({"keys": 2, "values": 2}, 90),
    "documents": ({"depths": [0.4], "num_documents": 3}, 90),
    "variable_tracking": ({"hops": 3, "chains": 2}, 120),
    "common_words": ({"num_common": 3, "common_repeats": 3, "uncommon_repeats": 1}, 60),
    "frequent_words": ({}, 150),
    "needle_threading": ({"steps": [2], "threads": 2}, 140),
    "ancestral_trace": ({}, 160),
    "flip_flop": ({"p": [0.8]}, 8),
    "associative_recall": ({}, 2),
    "padded_question": ({"depths": [0.5], "distances": [0.3]}, 90),
    "plain_text": ({"text": "templates"}, 1),
    "long_answer": ({"items": 4, "every": 2}, 90),
}
OWN = {"own_prompts", "own_documents"}


def built(name: str, tokenizer: Any, length: int, samples: int = 1, **fields: Any) -> list[Sample]:
    given = {"lengths": [length], "samples": samples, **CASES[name][0], **fields}
    return list(build("workloads", name, given).build(tokenizer))


def test_every_workload_is_tested() -> None:
    assert {*CASES, *OWN} == set(discovery.names("workloads"))


@pytest.mark.parametrize("name", CASES)
@given(length=st.integers(1000, 2200), seed=st.integers(0, 50))
@settings(max_examples=2, deadline=None, derandomize=True)
def test_a_length_is_met_and_never_exceeded(
    name: str, tokenizer: PreTrainedTokenizerFast, length: int, seed: int
) -> None:
    (sample,) = built(name, tokenizer, length, seed=seed)
    assert length - CASES[name][1] <= len(sample.tokens) == sample.facts["num_tokens"] <= length
    assert sample.facts["length"] == length


@pytest.mark.parametrize("name", sorted(set(CASES) - {"plain_text", "associative_recall", "flip_flop", "long_answer"}))
def test_a_span_s_tokens_are_those_of_its_text(
    name: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[MarkedText] = []
    tokenised = MarkedText.tokenised
    monkeypatch.setattr(MarkedText, "tokenised", lambda text, by: (written.append(text), tokenised(text, by))[1])
    made = built(name, tokenizer, 1300, samples=3, seed=11)
    for sample, text in zip(made, written, strict=True):
        encoded = tokenizer(text.text, return_offsets_mapping=True)
        edges = encoded["offset_mapping"]
        assert tuple(encoded["input_ids"][: len(sample.tokens)]) == sample.tokens
        assert [span.name for span in sample.spans] == list(text.ranges)
        for span in sample.spans:
            start, stop = text.ranges[span.name]
            assert not {text.text[start], text.text[stop - 1]} & {" ", "\n"}
            # Each of its tokens has a character of it, and the tokens beside it have none.
            assert all(first < stop and last > start for first, last in edges[span.start : span.stop])
            assert span.start == 0 or edges[span.start - 1][1] <= start
            assert span.stop == len(edges) or edges[span.stop][0] >= stop or edges[span.stop] == (0, 0)
            read = "".join(tokenizer.decode(sample.tokens[span.start : span.stop]).split())
            assert "".join(text.text[start:stop].split()) in read


@pytest.mark.parametrize("name", CASES)
def test_every_span_lies_in_the_prompt_and_the_question_ends_it(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    for sample in built(name, tokenizer, 1200, samples=3):
        assert len({span.name for span in sample.spans}) == len(sample.spans) > 0
        assert all(0 <= span.start < span.stop <= len(sample.tokens) for span in sample.spans)
        if name != "plain_text":
            assert sample.span("question").stop == len(sample.tokens)


@pytest.mark.parametrize("name", CASES)
def test_a_private_sample_keeps_its_name_its_spans_and_no_word(name: str, plain: PreTrainedTokenizerFast) -> None:
    for sample in built(name, plain, 1000, samples=2):
        kept = withheld_sample(sample)
        assert (kept.name, kept.spans) == (sample.name, sample.spans)
        assert kept.facts["length"] == 1000
        said = json.dumps(kept.to_json())
        words = [sample.answer.strip(), *sample.answers] if name not in ("flip_flop", "padded_question") else []
        assert not [word for word in words if word in said]
        assert "label" not in kept.facts


@pytest.mark.parametrize("name", sorted(set(CASES) - {"plain_text", "associative_recall"}))
def test_the_answer_s_tokens_are_those_that_follow_the_prompt(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    for sample in built(name, tokenizer, 1200, samples=3):
        prompt = tokenizer(sample.text, add_special_tokens=False)["input_ids"]
        whole = tokenizer(sample.text + sample.answer, add_special_tokens=False)["input_ids"]
        assert list(sample.tokens[len(sample.tokens) - len(prompt) :]) == prompt
        assert [*prompt, *sample.answer_tokens] == whole
        assert "".join(tokenizer.decode(sample.answer_tokens).split()) == "".join(sample.answer.split())


@pytest.mark.parametrize("name", sorted(set(CASES) - {"plain_text"}))
def test_the_right_answer_is_judged_right_and_another_wrong(name: str, plain: PreTrainedTokenizerFast) -> None:
    first, second = built(name, plain, 1200, samples=8)[::7]
    wrong = [*second.answer_tokens[::-1], *[3] * 40]
    right = judge(first, first.answer_tokens, f"I say{first.answer}.")
    assert (right.correct, right.score) == (True, 1.0)
    assert right.rule.startswith(first.success_rule)
    assert judge(first, wrong, "something else").correct is False
    assert first.num_new_tokens >= len(first.answer_tokens) or name == "documents"


@pytest.mark.parametrize("name", CASES)
def test_a_sample_depends_on_its_cell_and_the_seed_alone(name: str, plain: PreTrainedTokenizerFast) -> None:
    fields = {"lengths": [1000, 1200], "samples": 2, **CASES[name][0]}
    workload = build("workloads", name, fields)
    whole = {sample.name: sample for sample in workload.build(plain)}
    assert len(whole) == len(workload.cells()) == 4
    for cell in reversed(workload.cells()):
        (alone,) = workload.build(plain, [cell])
        assert alone == whole[cell.name] == Sample.from_json(json.loads(json.dumps(alone.to_json())))
    assert len({sample.text for sample in whole.values()}) == 4
    others = build("workloads", name, {**fields, "seed": 7}).build(plain)
    assert not {sample.text for sample in others} & {sample.text for sample in whole.values()}


ANOTHER_PROCESS = """
import json, sys
from transformers import PreTrainedTokenizerFast
from probe.casebook import build
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1], **json.loads(sys.argv[3]))
for name, fields in json.loads(sys.argv[2]).items():
    for sample in build("workloads", name, fields).build(tokenizer):
        print(json.dumps(sample.to_json()))
"""


def test_another_process_builds_the_same_samples(plain: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    plain.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    asked = {name: {"lengths": [1000], "samples": 2, **fields} for name, (fields, _) in CASES.items()}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "123"}
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(tmp_path / "tokenizer.json"), json.dumps(asked)]
    command.append(json.dumps(plain.special_tokens_map))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    here = [sample for name, fields in asked.items() for sample in build("workloads", name, fields).build(plain)]
    assert [Sample.from_json(json.loads(line)) for line in done.stdout.splitlines()] == here


@pytest.mark.parametrize("name", sorted(set(CASES) - {"needle", "plain_text"}))
def test_a_length_that_holds_nothing_is_refused_by_name(name: str, plain: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match=rf"^{name}: .*(take|fit)"):
        built(name, plain, 2)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_field_is_named(name: str) -> None:
    with pytest.raises(CasebookError, match="many"):
        build("workloads", name, {**CASES[name][0], "lengths": ["many"]})
    with pytest.raises(UsageError, match="samples"):
        build("workloads", name, {**CASES[name][0], "samples": 0})
    with pytest.raises(CasebookError, match="lenghts"):
        build("workloads", name, {"lenghts": [1]})


WITH_ABSENT = sorted({"passkey", "key_values", "needles", "documents", "variable_tracking"})


@pytest.mark.parametrize("name", WITH_ABSENT)
def test_samples_of_one_name_pair_across_what_is_given(name: str, plain: PreTrainedTokenizerFast) -> None:
    whole, alone, absent = (
        built(name, plain, 900, samples=4, given=given) for given in ("all", "gold_only", "gold_absent")
    )
    for there, gold, gone in zip(whole, alone, absent, strict=True):
        assert there.name == gold.name == gone.name
        assert there.answer_tokens == gold.answer_tokens == gone.answer_tokens
        accepted = there.answers or (there.answer.strip(),)
        questions = {plain.decode(each.tokens[each.span("question").start :]) for each in (there, gold, gone)}
        assert len(questions) == 1
        for each in accepted:
            assert each in there.text
            assert each in gold.text
            assert each not in gone.text
        assert len(gold.tokens) < len(there.tokens)
        assert not [span.name for span in gone.spans if span.name.startswith("needle")]


@pytest.mark.parametrize(
    "name", sorted(set(CASES) - {"needle", "associative_recall", "flip_flop", "plain_text", "long_answer"})
)
def test_an_answer_of_unknown_words_is_refused(name: str, lexicon: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="does not keep the answer"):
        built(name, lexicon, 1500)


def test_a_flip_flop_needs_five_words_alone(lexicon: PreTrainedTokenizerFast) -> None:
    (sample,) = built("flip_flop", lexicon, 512)
    assert len(sample.tokens) + 1 == 512
    assert set(sample.tokens) <= {1, 2, 3, 4, 5}


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chatting(plain: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer with a chat template."""
    made = copy.deepcopy(plain)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHATML
    return made


NO_CHAT = {"flip_flop", "associative_recall", "plain_text"}


@pytest.mark.parametrize("name", sorted(set(CASES) - NO_CHAT))
def test_in_a_chat_spans_and_answers_stay_what_they_are(name: str, chatting: PreTrainedTokenizerFast) -> None:
    alone = built(name, chatting, 1500, samples=2)
    for there, said in zip(alone, built(name, chatting, 1500, samples=2, chat="auto"), strict=True):
        assert said.name == there.name
        assert said.answer == there.answer
        assert said.text.startswith("<|im_start|>user\n")
        _, cue = said.text.split("<|im_end|>\n<|im_start|>assistant\n")
        assert cue
        assert not cue[0].isspace()
        assert there.text.endswith(cue)
        assert len(said.tokens) <= 1500
        whole = chatting(said.text + said.answer, add_special_tokens=False)["input_ids"]
        assert list(said.tokens + said.answer_tokens) == whole
        for span in said.spans:
            if span.name.startswith(("needle_value", "needle_key", "needle_fact", "instruction")):
                other = there.span(span.name)
                read = "".join(chatting.decode(said.tokens[span.start : span.stop]).split())
                assert read == "".join(chatting.decode(there.tokens[other.start : other.stop]).split())
        assert "chat_template_sha256" in said.facts


@pytest.mark.parametrize("name", sorted(NO_CHAT))
def test_what_is_no_question_is_no_chat(name: str, chatting: PreTrainedTokenizerFast) -> None:
    assert built(name, chatting, 1000, chat="auto") == built(name, chatting, 1000)
    with pytest.raises(UsageError, match=rf"{name}: what it asks has no words"):
        built(name, chatting, 1000, chat="always")


@pytest.fixture(scope="module")
def well_fed(plain: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words, as one of a large model does: one that was trained on these very texts."""
    texts = [sample.text for name in CASES for sample in built(name, plain, 3000, samples=3)]
    return plain.train_new_from_iterator(texts, 8000, show_progress=False)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"flip_flop"}))
def test_128_tokens_hold_every_workload_as_it_is(name: str, well_fed: PreTrainedTokenizerFast) -> None:
    for sample in build("workloads", name, {"lengths": [128], "samples": 8}).build(well_fed):
        assert 64 < len(sample.tokens) <= 128


@pytest.mark.parametrize(
    ("name", "length"), [("needles", 131_072), *((name, 20_000) for name in sorted(set(CASES) - {"needles"}))]
)
def test_long_prompts_are_made(name: str, length: int, plain: PreTrainedTokenizerFast) -> None:
    (sample,) = built(name, plain, length)
    assert length - 600 < len(sample.tokens) <= length

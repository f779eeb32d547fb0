"""A stretch's place is known with the text, and as much fits as fits."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from probe.errors import UsageError
from probe.workloads import names
from probe.workloads.filling import NOISE, among, filler
from probe.workloads.fitting import fit, within
from probe.workloads.marked_text import MarkedText
from probe.workloads.stretches import stretch, written

WORDS = st.text("ab é🙂東\n", max_size=6)


@given(pieces=st.lists(st.tuples(st.booleans(), WORDS), min_size=1, max_size=12))
def test_a_stretch_is_its_text_less_white_space_at_its_ends(pieces: list[tuple[bool, str]]) -> None:
    named = [stretch(f"s{at}", text) if is_named else text for at, (is_named, text) in enumerate(pieces)]
    made = written(*named)
    assert made.text == "".join(text for _, text in pieces)
    starts = list(accumulate((len(text) for _, text in pieces), initial=0))
    for at, (is_named, text) in enumerate(pieces):
        if is_named:
            start, stop = made.ranges[f"s{at}"]
            assert made.text[start:stop] == text.strip()
            assert starts[at] <= start <= stop <= starts[at + 1]


def test_a_stretch_holds_its_parts() -> None:
    made = written("x ", stretch("whole", "a ", stretch("part", "b"), " c "), "d")
    assert {name: made.text[start:stop] for name, (start, stop) in made.ranges.items()} == {
        "whole": "a b c",
        "part": "b",
    }
    assert list(made.ranges) == ["whole", "part"]
    with pytest.raises(ValueError, match="two stretches are named 'a'"):
        written(stretch("a", "x"), stretch("a", "y"))


@given(seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_a_span_is_the_tokens_that_overlap_its_characters(tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    rng = random.Random(seed)
    words = [rng.choice([*names.NOUNS, "7201936", "naïve", "—", "東京"]) for _ in range(30)]
    cuts = sorted(rng.sample(range(31), 3))
    inside = " ".join(words[cuts[0] : cuts[1]]) or "word"
    text = written(" ".join(words[: cuts[0]]), " ", stretch("x", inside), rng.choice([" ", ". ", ""]), words[-1])
    (span,) = text.tokenised(tokenizer).spans
    (start, stop), encoded = text.ranges["x"], tokenizer(text.text, return_offsets_mapping=True)
    overlapping = [
        at
        for at, (first, last) in enumerate(encoded["offset_mapping"])
        if {*range(first, last)} & {*range(start, stop)}
    ]
    assert [*range(span.start, span.stop)] == overlapping


@given(length=st.integers(20, 3000), seed=st.integers(0, 20), least=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_the_largest_number_that_fits_is_found(
    tokenizer: PreTrainedTokenizerFast, length: int, seed: int, least: int
) -> None:
    rng = random.Random(seed)
    items = [" ".join(rng.choices(names.NOUNS, k=rng.choice([1, 2, 30]))) for _ in range(3200)]
    calls = []

    def compose(number: int) -> MarkedText:
        calls.append(number)
        return written(" ".join(["Q", *items[:number]]))

    def tokens(number: int) -> int:
        return len(tokenizer(compose(number).text)["input_ids"]) - (tokenizer.num_special_tokens_to_add() > 1)

    if tokens(least) > length:
        with pytest.raises(UsageError, match=r"^Q takes \d+ tokens"):
            fit(compose, length, tokenizer, what="Q", least=least)
        return
    calls.clear()
    found = fit(compose, length, tokenizer, what="Q", least=least)
    assert len(calls) < 30
    assert tokens(found.number) <= length < tokens(found.number + 1)
    assert found.text == compose(found.number)


def test_too_few_items_are_said(plain: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match=r"^five words: there are no more than 5, which take \d+ of 1000 tokens"):
        fit(lambda number: written("word " * number), 1000, plain, what="five words", most=5)
    with pytest.raises(UsageError, match=r"^a word takes \d+ tokens with this tokenizer and does not fit into 1"):
        within(written("a long word"), 1, plain, what="a word")


def test_hidden_stretches_stand_after_their_share() -> None:
    hidden = [(1.0, stretch("last", "L")), (0.0, stretch("first", "F")), (0.5, stretch("b", "B")), (0.4, "A")]
    assert written(*among(["1", "2"], hidden)).text == "F 1 A B 2 L"
    assert written(*among([], hidden)).text == "F A B L"
    assert written(*among(["1", "2"], [], "\n")).text == "1\n2"


def test_noise_is_its_five_sentences() -> None:
    assert filler("noise", random.Random(0)).first(3) == [" ".join(NOISE)] * 3


@pytest.mark.parametrize("kind", ["words", "numbers", "uuids"])
def test_values_are_never_drawn_twice_and_more_begin_with_the_same(kind: names.Kind) -> None:
    drawn = names.values(random.Random(3), kind)
    few = drawn.first(10)
    many = drawn.first(8000)
    assert many[:10] == few
    assert len(set(many)) == 8000
    assert names.values(random.Random(3), kind, without=set(few)).first(50) == many[10:60]
    assert [value for value, _ in zip(drawn, range(5), strict=False)] == few[:5]


def test_there_are_only_so_many_names() -> None:
    with pytest.raises(UsageError, match="there are 90 numbers of 2 digits, and more are needed"):
        names.values(random.Random(0), "numbers", digits=2).first(91)
    assert len(set(names.values(random.Random(0), "numbers", digits=2).first(90))) == 90
    for every in (names.ADJECTIVES, names.NOUNS, names.FIRST_NAMES, names.LAST_NAMES):
        assert len(set(every)) == len(every)
    places = names.places(random.Random(0)).first(11_500)
    assert len(set(places)) == 11_500

"""Patched heads say and look as in another run, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import probe
from probe.errors import UsageError
from probe.hooks.patch_heads import patch_heads
from probe.sample import Sample
from tests.interventions.dense_model import llama

RETRIEVING = [(2, 2), (2, 5), (2, 9), (2, 13)]


@pytest.fixture(scope="module")
def needle() -> Any:
    return probe.load("needle")


@pytest.fixture(scope="module")
def sample(needle: Any) -> Sample:
    return next(iter(probe.needle(lengths=(128,), depths=(0.5,), samples=1, seed=7).build(needle.tokenizer)))


def first_token(model: Any, sample: Sample) -> int:
    return int(probe.trace(model, sample, statistics=[]).outcome.response_tokens[0])


def test_a_head_that_copies_says_what_it_copied_in_the_other_prompt(needle: Any, sample: Sample) -> None:
    value = sample.span("needle_value")
    there = sample.tokens[value.start]
    other = next(
        int(id) for word, id in needle.tokenizer.get_vocab().items() if word.isdigit() and id not in sample.tokens
    )
    swapped = tuple(other if at == value.start else token for at, token in enumerate(sample.tokens))
    last = len(sample) - 1
    assert first_token(needle, sample) == there
    with patch_heads(RETRIEVING, swapped, queries=(last, last + 1))(needle):
        assert first_token(needle, sample) == other
    with patch_heads([(2, 0), (2, 1), (2, 3), (2, 4)], swapped, queries=(last, last + 1))(needle):
        assert first_token(needle, sample) == there


def test_a_head_that_looks_elsewhere_copies_what_stands_there(needle: Any, sample: Sample) -> None:
    """The other prompt asks for a distractor's city, at the same places."""
    distractor, question = sample.span("distractor_0"), sample.span("question")
    wrong = sample.distractor_answers[0]
    # "The magic number for CITY is" and the value.
    asked, other = (sample.tokens[sample.span(name).start + 4] for name in ("needle", "distractor_0"))
    assert sample.tokens[distractor.start + 6 : distractor.start + 10] == wrong
    assert sample.tokens[question.start :].count(asked) == 2
    swapped = tuple(
        other if token == asked and at >= question.start else token for at, token in enumerate(sample.tokens)
    )
    last = len(sample) - 1
    with patch_heads(RETRIEVING, swapped, "pattern", queries=(last, last + 1))(needle):
        trace = probe.trace(needle, sample, statistics=["span_mass"])
    assert trace.outcome.response_tokens[0] == wrong[0]
    assert float(trace["span_mass"].sel(span="distractor_0", layer=2, head=5).isel(row=0)) > 0.5
    assert float(trace["span_mass"].sel(span="needle", layer=2, head=5).isel(row=0)) < 0.1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"from_prompt": []}, "from_prompt is empty"),
        ({"what": "value"}, "what is 'value'; expected output, pattern"),
        ({"phase": "answer"}, "phase is 'answer'"),
        ({"queries": (5, 5)}, "queries is a range"),
        ({"heads": [3]}, "heads are pairs"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        patch_heads(**{"heads": [(0, 0)], "from_prompt": [1, 2, 3], **fields})


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (patch_heads([(0, 0)], [1, 2, 3], queries=(1, 4)), "queries reach position 3, and from_prompt has 3 tokens"),
        (patch_heads([(0, 0)], [1] * 65, "pattern"), "queries are 65 rows of a pattern.*at most 64"),
        (patch_heads([(9, 0)], [1, 2, 3]), r"has no head \(9, 0\); it has 3 layers of 4 heads"),
        (patch_heads([(0, 0)], "some text"), "from_prompt is text, and the model brings no tokenizer"),
    ],
)
def test_what_cannot_be_patched_is_refused_on_entering(asked: patch_heads, reason: str) -> None:
    with pytest.raises(UsageError, match=reason), asked(llama()):
        pass


def test_a_prompt_that_ends_before_is_refused_before_the_run(needle: Any, sample: Sample) -> None:
    asked = patch_heads([(2, 5)], [3] * 500, queries=(400, 500))
    with pytest.raises(UsageError, match=r"queries begin at position 400, and .* nothing would be patched"):
        asked.check(needle, sample)
    dataclasses.replace(asked, queries=(len(sample) - 1, 500)).check(needle, sample)

"""Attention knockout by the names of a sample's spans, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import probe
from probe.errors import UsageError
from probe.hooks.block_attention import block_attention
from probe.hooks.intervention import Intervention
from probe.sample import Sample, Span
from tests.interventions.dense_model import llama, tokens


@pytest.fixture(scope="module")
def needle() -> Any:
    return probe.load("needle")


@pytest.fixture(scope="module")
def samples(needle: Any) -> list[Sample]:
    return list(probe.needle(lengths=(128,), depths=(0.5,), samples=4, seed=7).build(needle.tokenizer))


def test_an_answer_whose_needle_is_blocked_is_lost_and_the_trace_shows_why(needle: Any, samples: list[Sample]) -> None:
    whole = [probe.trace(needle, sample, statistics=["span_mass"]) for sample in samples]
    with block_attention("needle", phase="decode")(needle):
        blocked = [probe.trace(needle, sample, statistics=["span_mass"]) for sample in samples]
    with block_attention("distractor_0", phase="decode")(needle):
        spared = [probe.trace(needle, sample, statistics=[]) for sample in samples]
    assert [trace.outcome.correct for trace in whole] == [True] * 4
    assert [trace.outcome.correct for trace in blocked] == [False] * 4
    assert [trace.outcome.correct for trace in spared] == [True] * 4
    for before, after in zip(whole, blocked, strict=True):
        assert float(before["span_mass"].sel(span="needle", layer=2).max()) > 0.5
        assert float(after["span_mass"].sel(span="needle").max()) == 0.0


def test_names_mean_the_positions_of_the_sample_that_is_read(needle: Any, samples: list[Sample]) -> None:
    sample = samples[0]
    spans = [sample.span(name) for name in ("question", "needle")]
    at = [(span.start, span.stop) for span in spans]
    with block_attention("needle", "question")(needle):
        named = probe.trace(needle, sample, statistics=["entropy"])
    with block_attention(at[1], at[0])(needle):
        given = probe.trace(needle, sample, statistics=["entropy"])
    assert named["entropy"].equals(given["entropy"])
    assert named.outcome == given.outcome


def test_a_name_without_a_sample_is_refused(needle: Any) -> None:
    with (
        pytest.raises(UsageError, match="keys_of names the span 'needle', and this forward is of no sample"),
        block_attention("needle")(needle),
        torch.no_grad(),
    ):
        needle.hf(torch.tensor([[3, 4, 5]]))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (block_attention("nedle"), "keys_of names the span 'nedle', and 's' has needle, question"),
        (block_attention("needle", "answer"), "queries_of names the span 'answer'"),
        (block_attention("question", "needle"), "no query of queries_of comes after a key of keys_of"),
        (block_attention((30, 40)), "nothing to block"),
        (block_attention((0, 8), "needle"), "position 6 none of the keys that layer 0 lets it see .positions 5 to 6."),
        (block_attention((0, 8), "needle", layers=[2]), "position 6 none of the keys that layer 2"),
        (block_attention((0, 12), queries=(11, 15), layers=[2]), "position 11 none of the keys that layer 2"),
        (block_attention("question", phase="decode"), "position 19 none of the keys that layer 0"),
    ],
)
def test_what_cannot_be_blocked_is_refused_before_the_run(needle: Any, asked: Any, reason: str) -> None:
    sample = Sample("s", tuple(range(3, 23)), (Span("needle", 6, 10), Span("question", 15, 20)), answer_tokens=(5, 6))
    with pytest.raises(UsageError, match=reason):
        asked.check(needle, sample)


def test_a_query_that_keeps_its_own_key_is_not_refused(needle: Any) -> None:
    sample = Sample("s", tuple(range(3, 23)), (Span("needle", 6, 10), Span("question", 15, 20)), answer_tokens=(5, 6))
    block_attention("needle", "question").check(needle, sample)
    block_attention((0, 19), phase="decode").check(needle, sample)


def test_in_a_forward_by_hand_a_query_without_keys_is_refused_too() -> None:
    model = llama()
    with (
        pytest.raises(UsageError, match="the query at position 3 none of the keys that layer 0"),
        block_attention((0, 6), (3, 9))(model),
        torch.no_grad(),
    ):
        model(torch.tensor([tokens(12)]))


@pytest.mark.parametrize("given", ["", [], (4, 4), (3, 2), [(1, 2), 3], 7, (-1, 4), [("a", "b")]])
def test_stretches_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="keys_of is the name of a span"):
        block_attention(given)


def test_it_comes_back_from_the_yaml_of_a_casebook() -> None:
    made = block_attention(["needle", (3, 9)], "question", layers=[1, 2])
    assert Intervention.from_json(made.to_json()) == made
    assert made.to_json()["block_attention"]["keys_of"] == ["needle", [3, 9]]

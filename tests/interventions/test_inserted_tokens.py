"""Pause tokens, the question twice, a sink's token: what is read, and where everything then stands."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import probe
from probe.errors import UsageError
from probe.hooks.add_pause_tokens import add_pause_tokens
from probe.hooks.intervention import Intervention
from probe.hooks.prepend_sink_token import prepend_sink_token
from probe.hooks.question_twice import question_twice
from probe.hooks.sequence.change_of_prompt import ChangeOfPrompt
from probe.hooks.sequence.inserted import inserted
from probe.hooks.together import together
from probe.sample import Sample, Span
from tests.interventions.dense_model import gpt2
from tests.workloads.conftest import KINDS, word_level
from tests.workloads.test_every_workload import built

WORKLOADS = ("needle", "documents", "key_values", "flip_flop", "associative_recall", "needle_threading")


@cache
def loaded(kind: str) -> Any:
    """A tiny model of a tokenizer's size, with the tokenizer."""
    tokenizer = KINDS[kind]()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return probe.load(LlamaForCausalLM(config).eval(), tokenizer=tokenizer)


@cache
def sample_of(workload: str, kind: str) -> Sample:
    return built(workload, KINDS[kind](), 1000, seed=3)[0]


def without(sample: Sample, start: int, stop: int) -> list[int]:
    return [*sample.tokens[:start], *sample.tokens[stop:]]


def held(sample: Sample, span: Span, start: int, stop: int) -> list[int]:
    """A span's tokens, but for those at positions from `start` to `stop`."""
    return [sample.tokens[at] for at in range(span.start, span.stop) if not start <= at < stop]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_span_still_holds_its_tokens(workload: str, kind: str) -> None:
    model, sample = loaded(kind), sample_of(workload, kind)
    asked: list[tuple[ChangeOfPrompt, str, int]] = [
        (add_pause_tokens(3, 5), "pause", 3),
        (add_pause_tokens(2, [5, 6], before="question"), "pause", 4),
        (question_twice(separator=[4]), "question_before", len(sample.span("question")) + 1),
        (prepend_sink_token(num_tokens=4), "sink_prefix", 4),
    ]
    for intervention, name, num in asked:
        read = intervention.rewritten(model, sample)
        start = read.span(name).start
        stop = start + num
        assert without(read, start, stop) == list(sample.tokens)
        assert [s.name for s in read.spans if s.name != name] == [s.name for s in sample.spans]
        for span in sample.spans:
            moved = read.span(span.name)
            assert held(read, moved, start, stop) == list(sample.tokens[span.start : span.stop])
            # Nothing is in it that was put beside it.
            assert len(moved) == len(span) or span.start < start < span.stop
        for fact in (fact for fact in sample.facts if fact.endswith("_positions")):
            pairs = zip(sample.facts[fact], read.facts[fact], strict=True)
            assert all(sample.tokens[before] == read.tokens[after] for before, after in pairs)
            assert all(
                after - before == (num if before >= start else 0)
                for before, after in zip(sample.facts[fact], read.facts[fact], strict=True)
            )
        assert read.facts.get("num_tokens", len(read)) == len(read)
        assert (read.answer_tokens, read.name) == (sample.answer_tokens, sample.name)


@pytest.mark.parametrize("kind", KINDS)
def test_where_each_stands(kind: str) -> None:
    model, sample = loaded(kind), sample_of("documents", kind)
    tokenizer = model.tokenizer
    pauses = add_pause_tokens(7).rewritten(model, sample)
    dot = tokenizer(".", add_special_tokens=False)["input_ids"]
    assert list(pauses.tokens) == [*sample.tokens, *dot * 7]
    assert pauses.span("pause") == Span("pause", len(sample), len(pauses))
    inside = add_pause_tokens(1, before="question").rewritten(model, sample)
    assert inside.span("pause").stop == inside.span("question").start
    twice = question_twice(separator="").rewritten(model, sample)
    asked, again = twice.span("question"), twice.span("question_before")
    assert twice.tokens[asked.start : asked.stop] == twice.tokens[again.start : again.stop]
    # Behind the beginning-of-sequence token, where the tokenizer puts one.
    assert again.start == (1 if kind == "bytes, beginning and end" else 0)
    before = question_twice(before="document_1").rewritten(model, sample)
    newlines = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    assert before.span("question_before").stop == before.span("document_1").start - len(newlines)
    sink = prepend_sink_token("\n", 2).rewritten(model, sample)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert list(sink.tokens) == [*newline * 2, *sample.tokens]


def test_spans_that_touch_or_hold_the_place() -> None:
    names = {"before": (0, 2), "holds": (1, 4), "empty": (2, 2), "after": (2, 5), "later": (4, 5)}
    sample = Sample("a", (0, 1, 2, 3, 4), tuple(Span(name, *ends) for name, ends in names.items()))
    read = inserted(sample, 2, (9, 9, 9), "new")
    assert read.tokens == (0, 1, 9, 9, 9, 2, 3, 4)
    found = {span.name: (span.start, span.stop) for span in read.spans}
    assert found == {
        "before": (0, 2), "holds": (1, 7), "new": (2, 5), "empty": (5, 5), "after": (5, 8), "later": (7, 8),
    }  # fmt: skip
    assert inserted(read, 0, (8,), "new").span("new_1") == Span("new_1", 0, 1)
    assert inserted(sample, 2, (), "new") is sample


def test_a_trace_is_of_what_was_read() -> None:
    """The loss of an answer after pauses is that of the same tokens written by hand."""
    model, sample = loaded("bytes"), sample_of("needle", "bytes")
    by_hand = dataclasses.replace(sample, tokens=(*sample.tokens, 7, 7), spans=(), text="")
    expected = probe.trace(model, by_hand, statistics=["loss"])
    before = probe.trace(model, sample, statistics=["loss"])
    with add_pause_tokens(2, 7)(model):
        trace = probe.trace(model, sample, statistics=["loss"])
    assert trace.sample.tokens == by_hand.tokens
    assert trace.sample.span("pause") == Span("pause", len(sample), len(sample) + 2)
    assert trace.outcome.answer_loss == expected.outcome.answer_loss != before.outcome.answer_loss
    after = probe.trace(model, sample, statistics=["loss"])
    assert after.outcome.answer_loss == before.outcome.answer_loss


def test_they_nest_in_the_order_in_which_they_are_entered() -> None:
    model, sample = loaded("bytes"), sample_of("needle", "bytes")
    with prepend_sink_token(5)(model), prepend_sink_token(6)(model), add_pause_tokens(1, 7)(model):
        tokens = probe.trace(model, sample, statistics=["loss"]).sample.tokens
    assert tokens == (6, 5, *sample.tokens, 7)


def test_what_does_not_apply_is_refused_by_field() -> None:
    model, sample = loaded("bytes"), sample_of("needle", "bytes")
    bare = dataclasses.replace(sample, spans=())
    aware = built("key_values", model.tokenizer, 1000, query_aware=True)[0]
    for make, words in (
        (lambda: add_pause_tokens(0), "num_tokens is at least 1"),
        (lambda: add_pause_tokens(1, ""), "token is empty"),
        (lambda: prepend_sink_token(num_tokens=0), "num_tokens is at least 1"),
        (lambda: prepend_sink_token(()), "token is empty"),
        (lambda: add_pause_tokens(1, 10_000).check(model, sample), "token has the token ids"),
        (lambda: add_pause_tokens(1, before="context").check(model, sample), "before names a span"),
        (lambda: question_twice().check(model, bare), "span names a span"),
        (lambda: question_twice(before="question").check(model, sample), "nothing stands between question"),
        (lambda: question_twice().check(model, aware), "already"),
        (lambda: add_pause_tokens().check(model.hf, sample), "token is text"),
        (
            lambda: add_pause_tokens(1, "Zanzibar").check(probe.load(model.hf, tokenizer=word_level()), sample),
            "know 'Zanz",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            make()  # type: ignore[no-untyped-call]


ROOM = 256
"""Positions that the model of these tests has learned."""
LENGTHENED: dict[str, tuple[Intervention, int]] = {
    "pause": (add_pause_tokens(6, 5), 6),
    "twice": (question_twice(separator=()), 4),
    "sink": (prepend_sink_token(5, 3), 3),
    "all": (together([prepend_sink_token(5, 3), add_pause_tokens(6, 5), question_twice(separator=())]), 13),
}
"""Interventions, and how many tokens longer they make `crowded`, whose question has four."""


def crowded(num_tokens: int, answer: int = 0, num_new: int = 1) -> Sample:
    tokens = tuple(i % 60 for i in range(num_tokens))
    question = Span("question", num_tokens - 4, num_tokens)
    return Sample("full", tokens, spans=(question,), answer_tokens=(3,) * answer, max_new_tokens=num_new)


@pytest.mark.parametrize("kind", LENGTHENED)
def test_what_becomes_too_long_is_refused_before_it_is_read_and_by_name(kind: str) -> None:
    model = probe.load(gpt2())
    intervention, more = LENGTHENED[kind]
    # Of two new tokens, or of two of an answer, the last is produced and takes no place.
    for options in ({}, {"num_new": 2}, {"answer": 2}):
        room = ROOM - more - bool(options)
        fits, over = crowded(room, **options), crowded(room + 1, **options)
        intervention.check(model, fits)
        with pytest.raises(
            UsageError, match=rf"^\w+ makes \d+ tokens \d+, .*{ROOM} learned positions; 'full' needs 257"
        ):
            intervention.check(model, over)
    with intervention(model):
        assert len(probe.trace(model, crowded(ROOM - more), statistics=["loss"]).sample) == ROOM
        with pytest.raises(UsageError, match=rf"^\w+ makes \d+ tokens 257, .*{ROOM} learned positions"):
            probe.trace(model, crowded(ROOM - more + 1), statistics=["loss"])
        # The sample's own word on how much is decoded may be overruled.
        probe.trace(model, crowded(ROOM - more, num_new=9), statistics=["loss"], max_new_tokens=1)
    # Afterwards the longest prompt can be read.
    assert len(probe.trace(model, crowded(ROOM), statistics=["loss"]).sample) == ROOM


def test_of_several_the_one_that_makes_it_too_long_is_named() -> None:
    model, sample = probe.load(gpt2()), crowded(ROOM - 8)
    for each in (add_pause_tokens(6, 5), prepend_sink_token(5, 3)):
        each.check(model, sample)
    for last, other in (
        (add_pause_tokens(6, 5), prepend_sink_token(5, 3)),
        (prepend_sink_token(5, 3), add_pause_tokens(6, 5)),
    ):
        with pytest.raises(
            UsageError, match=f"^{type(last).__name__} makes {ROOM - 8 + (3 if last.num_tokens == 6 else 6)}"
        ):
            together([other, last]).check(model, sample)


def test_rotary_positions_have_no_end_that_a_longer_prompt_could_pass() -> None:
    model = loaded("bytes")
    assert not model.hard_limit
    add_pause_tokens(model.max_length, 5).check(model, crowded(8))


def test_they_come_back_from_json() -> None:
    for asked in (add_pause_tokens(3, [4, 5], "question"), question_twice("user_0", ""), prepend_sink_token("\n", 4)):
        assert Intervention.from_json(asked.to_json()) == asked

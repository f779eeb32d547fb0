"""Documents moved: every token is somewhere, spans hold what they held, and sorting ends with the most attended."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import probe
from probe.errors import UsageError
from probe.hooks.intervention import Intervention
from probe.hooks.move_documents import move_documents
from probe.hooks.sequence.document_order import reordered
from probe.hooks.sequence.sample_read import prepared
from probe.hooks.sort_documents import sort_documents
from probe.sample import Sample, Span

PLAIN = Sample(
    "plain",
    tuple(range(20)),
    spans=(
        Span("instruction", 0, 2),
        Span("document_0", 2, 5),
        Span("all", 2, 16),
        Span("document_1", 6, 7),
        Span("document_2", 8, 13),
        Span("needle", 9, 11),
        Span("document_3", 14, 16),
        Span("question", 16, 20),
    ),
    facts={"gold_index": 2, "needle_depth": 2 / 3},
    text="what stood here before",
)
DOCUMENTS = [(2, 5), (6, 7), (8, 13), (14, 16)]


@pytest.fixture(scope="module")
def model() -> Any:
    return probe.load("position-bias")


@pytest.fixture(scope="module")
def sample(model: Any) -> Sample:
    return next(iter(probe.documents((150,), 1, 0, num_documents=5, depths=(0.5,)).build(model.tokenizer)))


def words(sample: Sample) -> dict[str, tuple[int, ...]]:
    return {span.name: sample.tokens[span.start : span.stop] for span in sample.spans}


def test_documents_move_with_what_stands_in_them() -> None:
    moved = reordered(PLAIN, DOCUMENTS, [2, 3, 0, 1], "who")
    #           0  1 | 8 … 12         | 5 | 14  15 | 7 | 2  3  4 | 13 | 6 | 16 …
    expected = (0, 1, 8, 9, 10, 11, 12, 5, 14, 15, 7, 2, 3, 4, 13, 6, 16, 17, 18, 19)
    assert moved.tokens == expected
    assert words(moved) == {
        "instruction": (0, 1),
        "document_0": (8, 9, 10, 11, 12),
        "document_1": (14, 15),
        "document_2": (2, 3, 4),
        "document_3": (6,),
        "all": expected[2:16],
        "needle": (9, 10),
        "question": (16, 17, 18, 19),
    }
    assert moved.facts == {
        "gold_index": 0, "needle_depth": 0.0, "needle_depth_before": 2 / 3, "document_order": [2, 3, 0, 1],
    }  # fmt: skip
    # The text is of another prompt; a trace makes it from the tokens.
    assert moved.text == ""
    back = reordered(moved, [(2, 7), (8, 10), (11, 14), (15, 16)], [2, 3, 0, 1], "who")
    assert (back.tokens, words(back)) == (PLAIN.tokens, words(PLAIN))


def test_a_span_across_the_edge_of_a_document_is_refused() -> None:
    crossing = Sample("crossing", PLAIN.tokens, spans=(*PLAIN.spans, Span("sentence", 4, 9)))
    with pytest.raises(UsageError, match="span 'sentence' of sample 'crossing'"):
        reordered(crossing, DOCUMENTS, [1, 0, 2, 3], "who")
    assert reordered(crossing, DOCUMENTS, [0, 1, 2, 3], "who") is crossing


def test_orders() -> None:
    def order(asked: Any) -> Any:
        return asked.rewritten(None, PLAIN).facts.get("document_order")

    assert order(move_documents("reversed")) == [3, 2, 1, 0]
    assert order(move_documents("gold_first")) == [2, 0, 1, 3]
    assert order(move_documents("gold_last")) == [0, 1, 3, 2]
    drawn = [order(move_documents("random", seed)) for seed in range(40)]
    assert drawn == [order(move_documents("random", seed)) for seed in range(40)]
    assert len({tuple(each or ()) for each in drawn}) > 10


def test_sorting_puts_documents_in_the_order_of_eager_attention(model: Any, sample: Sample) -> None:
    exact = copy.deepcopy(model.hf).double()
    exact.set_attn_implementation("eager")

    def attention(read: Sample) -> torch.Tensor:
        with torch.no_grad():
            every = exact(torch.tensor([read.tokens]), output_attentions=True).attentions
        row = torch.stack([layer[0, :, -1] for layer in every]).mean((0, 1))
        spans = sorted((s for s in read.spans if s.name.startswith("document_")), key=lambda s: s.start)
        return torch.stack([row[span.start : span.stop].mean() for span in spans])

    once = attention(sample).argsort().tolist()
    assert once != sorted(once)
    read = sort_documents().rewritten(model.hf, sample)
    assert read.facts["document_order"] == once
    again = attention(read).argsort().tolist()
    assert sort_documents(rounds=2).rewritten(model.hf, sample).facts["document_order"] == [once[at] for at in again]
    assert sort_documents(highest="first").rewritten(model.hf, sample).facts["document_order"] == once[::-1]


def test_a_trace_reads_what_was_sorted_and_the_model_is_as_before(model: Any, sample: Sample) -> None:
    with sort_documents(heads=[(1, 0)], per="document")(model):
        trace = probe.trace(model, sample, statistics=["span_mass"], max_new_tokens=1, check=False)
        changed = prepared(model.hf, sample)
    assert trace.sample == changed
    assert sorted(trace.sample.tokens) == sorted(sample.tokens)
    assert prepared(model.hf, sample) is sample


def test_sorting_comes_before_calibration_which_sees_the_sorted_prompt(model: Any, sample: Sample) -> None:
    calibration = probe.found_in_the_middle(form="uncalibrated", sink_tokens=1)
    with sort_documents()(model), calibration(model):
        trace = probe.trace(model, sample, statistics=[], max_new_tokens=1, check=False)
    moved = sort_documents().rewritten(model.hf, sample)
    with calibration(model):
        expected = probe.trace(model, moved, statistics=[], max_new_tokens=1, check=False)
    assert trace.outcome.answer_log_probability == expected.outcome.answer_log_probability
    refused = pytest.raises(UsageError, match="enter it after what rewrites the prompt")
    with calibration(model), sort_documents()(model), refused:
        probe.trace(model, sample, statistics=[], max_new_tokens=1, check=False)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (sort_documents(layers=[7]), "no attention in layer 7"),
        (sort_documents(heads=[(0, 9)]), r"no head \(0, 9\)"),
        (sort_documents(), "1 spans document_0"),
        (move_documents("reversed"), "1 spans document_0"),
    ],
)
def test_what_does_not_apply_is_refused_by_name(model: Any, asked: Any, said: str) -> None:
    lone = Sample("lone", tuple(range(9)), spans=(Span("document_0", 2, 5),))
    with pytest.raises(UsageError, match=said):
        asked.check(model, lone)


def test_an_oracle_needs_a_gold_document() -> None:
    without = Sample("without", PLAIN.tokens, spans=PLAIN.spans[:5])
    with pytest.raises(UsageError, match="one document holds the span needle; 0 of 'without' do"):
        move_documents("gold_last").check(None, without)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        (sort_documents, {"rounds": 0}, "rounds"),
        (sort_documents, {"highest": "middle"}, "highest is 'middle'"),
        (sort_documents, {"per": "letter"}, "per is 'letter'"),
        (sort_documents, {"layers": [0], "heads": [(0, 0)]}, "give one of them"),
        (sort_documents, {"layers": []}, "at least one"),
        (sort_documents, {"heads": [1]}, "pairs of layer and head"),
        (move_documents, {"order": "sorted"}, "order is 'sorted'"),
    ],
)
def test_fields_are_checked(kind: Any, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        kind(**fields)


def test_they_come_back_from_json() -> None:
    for asked in (move_documents("random", 3), sort_documents(rounds=2, heads=[(1, 0)], per="document")):
        assert Intervention.from_json(asked.to_json()) == asked

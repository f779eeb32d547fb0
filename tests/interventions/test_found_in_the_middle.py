"""Calibration on samples: what is measured beforehand, held against the model's own eager attention in float64."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

import probe
from probe.errors import UsageError
from probe.hooks.attention.document_rows import last_row
from probe.hooks.found_in_the_middle import found_in_the_middle
from probe.hooks.intervention import Intervention
from probe.hooks.sequence.sample_read import preparing
from probe.sample import Sample
from tests.interventions.dense_model import causal, dense_logits, llama

DOCUMENTS = [(5, 9), (12, 30)]
DUMMY = ("The harbour was quiet .", "Somebody walked by .")


@pytest.fixture(scope="module")
def model() -> Any:
    return probe.load("position-bias")


@pytest.fixture(scope="module")
def sample(model: Any) -> Sample:
    return next(iter(probe.documents((150,), 1, 0, num_documents=5, depths=(0.5,)).build(model.tokenizer)))


def documents(sample: Sample) -> list[tuple[int, int]]:
    return [(span.start, span.stop) for span in sample.spans if span.name.startswith("document_")]


def eager(model: Any, tokens: Any, sample: Sample) -> torch.Tensor:
    """Mean attention per token of each document, from the last position, [layer head document], in float64."""
    exact = copy.deepcopy(model.hf).double()
    exact.set_attn_implementation("eager")
    with torch.no_grad():
        attention = exact(torch.tensor([list(tokens)]), output_attentions=True).attentions
    rows = torch.stack([layer[0, :, -1] for layer in attention])
    return torch.stack([rows[..., start:stop].mean(-1) for start, stop in documents(sample)], -1)


def with_dummies(model: Any, sample: Sample, text: str, places: list[int], heading: int) -> list[int]:
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    made = list(sample.tokens)
    for place in places:
        start, stop = documents(sample)[place]
        for at in range(start + heading, stop):
            made[at] = ids[(at - start - heading) % len(ids)]
    return made


def answer_loss(model: Any, sample: Sample, intervention: Any) -> list[float]:
    with intervention(model):
        trace = probe.trace(model, sample, statistics=[], max_new_tokens=1, check=False)
    return list(trace.outcome.answer_log_probability)


def expected(model: Any, sample: Sample, relevance: torch.Tensor, attention: torch.Tensor, temperature: float) -> Any:
    """Log-probabilities of the answer with attention shared out in the last of two layers, in float64."""
    alpha, first = (relevance / temperature).softmax(-1), len(sample) - 1

    def attend(layer: int, query: Any, key: Any, value: Any, scale: float) -> Any:
        given = causal(query @ key.transpose(1, 2) * scale).softmax(-1)
        if layer == 0:
            return given @ value
        rows = given[:, first:]
        before = sum(rows[..., start:stop].sum(-1) for start, stop in documents(sample))
        for k, (start, stop) in enumerate(documents(sample)):
            rows[..., start:stop] *= alpha[k] / attention[k]
        after = sum(rows[..., start:stop].sum(-1) for start, stop in documents(sample))
        for start, stop in documents(sample):
            rows[..., start:stop] *= (before / after)[..., None]
        return given @ value

    ids = [*sample.tokens, *sample.answer_tokens[:-1]]
    log_probability = dense_logits(model.hf, ids, attend)[first:].log_softmax(-1)
    return log_probability[torch.arange(len(sample.answer_tokens)), list(sample.answer_tokens)].tolist()


def test_the_last_row_is_that_of_eager_attention(model: Any, sample: Sample) -> None:
    found = last_row(model.hf, sample.tokens, tuple(documents(sample)))
    torch.testing.assert_close(
        torch.stack([found[0], found[1]]), eager(model, sample.tokens, sample), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize(("form", "temperature"), [("subtract", 1e-3), ("subtract", 5e-5), ("divide", 1.0)])
@pytest.mark.parametrize("dummies", ["one_at_a_time", "all_at_once"])
def test_calibrates_by_dummies_that_it_measures(
    model: Any, sample: Sample, form: Any, temperature: float, dummies: Any
) -> None:
    attention = eager(model, sample.tokens, sample).mean((0, 1))
    measured = []
    for text in DUMMY:
        if dummies == "all_at_once":
            measured.append(eager(model, with_dummies(model, sample, text, [0, 1, 2, 3, 4], 3), sample).mean((0, 1)))
        else:
            each = [eager(model, with_dummies(model, sample, text, [k], 3), sample) for k in range(5)]
            measured.append(torch.stack([found.mean((0, 1))[k] for k, found in enumerate(each)]))
    dummy = torch.stack(measured).mean(0)
    relevance = attention - dummy if form == "subtract" else attention.log() - dummy.log()
    intervention = found_in_the_middle(
        form=form, dummy=DUMMY, dummies=dummies, heading_tokens=3, sink_tokens=1,
        temperature=temperature if temperature == 1e-3 else None,
    )  # fmt: skip
    found = answer_loss(model, sample, intervention)
    assert found == pytest.approx(expected(model, sample, relevance, attention, temperature), rel=1e-5, abs=2e-5)
    # What was measured before and given gives the same.
    given = dataclasses.replace(intervention, dummy=(), dummy_attention=tuple(dummy.tolist()))
    assert answer_loss(model, sample, given) == pytest.approx(found, rel=1e-5, abs=2e-4)
    assert Intervention.from_json(given.to_json()) == given


def test_documents_keep_their_mass_together_at_the_temperature_of_the_paper(model: Any, sample: Sample) -> None:
    def mass() -> torch.Tensor:
        trace = probe.trace(model, sample, statistics=["span_mass"], max_new_tokens=1, check=False)
        names = [f"document_{k}" for k in range(5)]
        return torch.from_numpy(trace["span_mass"].sel(span=names).isel(row=0).values)

    before = mass()
    with found_in_the_middle(dummy=DUMMY)(model):
        after = mass()
    assert torch.isfinite(after).all()
    torch.testing.assert_close(after[0], before[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(after[1].sum(-1), before[1].sum(-1), rtol=1e-5, atol=1e-7)
    # So cold that nearly all of it is one document's.
    share = after[1] / after[1].sum(-1, keepdim=True)
    assert (share.max(-1).values > 0.99).all()
    assert len({int(best) for best in share.argmax(-1)}) == 1


def test_equal_relevance_changes_nothing() -> None:
    """A model that looks everywhere alike gives every document, and every dummy, the same."""
    flat = llama()
    for name, weight in flat.named_parameters():
        if "q_proj" in name:
            torch.nn.init.zeros_(weight)
    ids = list(range(40))
    with torch.no_grad():
        before = flat(torch.tensor([ids])).logits
        for asked in (
            found_in_the_middle(documents=DOCUMENTS, dummy_attention=[0.025] * 2, pool="layer"),
            found_in_the_middle(
                documents=[(5, 9), (12, 30)], dummy_attention=[0.025, 0.025], pool="head", form="divide"
            ),
            found_in_the_middle(documents=[(5, 9), (12, 30)], form="uncalibrated", pool="layer"),
        ):
            with asked(flat):
                torch.testing.assert_close(flat(torch.tensor([ids])).logits, before, rtol=1e-5, atol=1e-5)


def test_a_model_is_measured_as_it_is_and_not_as_another_intervention_has_it(model: Any, sample: Sample) -> None:
    with probe.ablate_heads([(1, 0), (1, 1)])(model):
        ablated = last_row(model.hf, sample.tokens, tuple(documents(sample)))
    plain = last_row(model.hf, sample.tokens, tuple(documents(sample)))
    assert all(torch.equal(ablated[layer], plain[layer]) for layer in plain)


def test_what_does_not_apply_is_refused_by_name(model: Any, sample: Sample) -> None:
    calibration = found_in_the_middle(dummy=DUMMY)
    with pytest.raises(UsageError, match="0 spans document_0"):
        calibration.check(model, Sample("bare", tuple(range(20))))
    with pytest.raises(UsageError, match="dummy is text"):
        calibration.check(model.hf, sample)
    with pytest.raises(UsageError, match="2 numbers for 5 documents"):
        found_in_the_middle(dummy_attention=[0.1, 0.2]).check(model, sample)
    with pytest.raises(UsageError, match="sink_tokens"):
        found_in_the_middle(dummy=DUMMY, sink_tokens=60).check(model, sample)
    with pytest.raises(UsageError, match="documents end at 900"):
        found_in_the_middle(dummy=DUMMY, documents=[(0, 9), (9, 900)]).check(model, sample)
    with calibration(model), pytest.raises(UsageError, match="nobody said which sample is read"):
        model.step(model.prefill([5, 6, 7]), [8])


def test_a_prompt_that_is_rewritten_after_it_was_measured_is_refused(model: Any, sample: Sample) -> None:
    def other(sample: Sample) -> Sample:
        return dataclasses.replace(sample, tokens=(*sample.tokens[::-1],))

    refused = pytest.raises(UsageError, match="enter it after what rewrites the prompt")
    with found_in_the_middle(dummy=DUMMY)(model), preparing(model.hf, other), refused:
        probe.trace(model, sample, statistics=[], max_new_tokens=1, check=False)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "takes dummy or dummy_attention"),
        ({"dummy": ["a"], "dummy_attention": [0.1, 0.2]}, "takes dummy or dummy_attention"),
        ({"form": "uncalibrated", "dummy": ["a"]}, "takes neither"),
        ({"form": "both", "dummy": ["a"]}, "form is 'both'"),
        ({"dummy": "a text"}, "dummy is a list"),
        ({"dummy": ["a"], "temperature": 0.0}, "temperature"),
        ({"dummy_attention": [0.0, 0.1], "form": "divide"}, "above 0 to divide by"),
        ({"dummy_attention": [0.1, 0.1, 0.1], "documents": [(0, 3), (3, 6)]}, "3 numbers for 2 documents"),
        ({"dummy": ["a"], "documents": [(0, 3), (2, 6)]}, "do not overlap"),
        ({"dummy": ["a"], "heading_tokens": -1}, "at least 0"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        found_in_the_middle(**fields)

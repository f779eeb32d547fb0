from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probe.sample import Sample, Span
from tests.analyses.conftest import make_trace

NUM_DOCUMENTS, TOKENS, NUM_PROMPTS = 10, 6, 20
STRENGTHS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
PLACES = np.linspace(0.0, 1.0, NUM_DOCUMENTS)
Profile = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def document_sample(
    index: int, gold: int | None, given: str = "all", turned: int = 0, length: int = 80, number: int = NUM_DOCUMENTS
) -> Sample:
    """A prompt of documents of six tokens each, after ten tokens; the gold's index is that of its place."""
    spans = [Span("instruction", 0, 10)]
    for at in range(number):
        spans.append(Span(f"document_{at}", 10 + at * TOKENS, 10 + (at + 1) * TOKENS))
        if at == gold and given == "all":
            spans.append(Span("needle", 10 + at * TOKENS, 10 + (at + 1) * TOKENS))
    facts: dict[str, Any] = {"length": length, "given": given, "gold_index": gold, "num_documents": number}
    if gold is not None:
        facts["needle_depth"] = gold / (number - 1)
    if turned:
        facts["turned_places"] = turned
    return Sample(
        name=f"documents-{length}-s{index}", tokens=(*range(length),), spans=(*spans,), answer_tokens=(7,), facts=facts
    )


def document_trace(sample: Sample, attention: NDArray[np.float64], **fields: Any) -> Any:
    """A trace in which each document's tokens get this much attention each, from every head of two layers."""
    names = [span.name for span in sample.spans]
    mass = np.zeros((2, 3, 1, len(names)))
    for at, value in enumerate(attention):
        mass[..., names.index(f"document_{at}")] = value * TOKENS
    if "needle" in names:
        mass[..., names.index("needle")] = attention[int(sample.facts["gold_index"])] * TOKENS
    made = make_trace(sample, arrays={"span_mass": (("layer", "head", "row", "span"), mass)}, **fields)
    made.dataset = made.dataset.assign_coords(span=names)
    made.unit = f"{fields.get('role')}-{sample.facts['given']}-{sample.facts.get('turned_places', 0)}-{sample.name}"
    made.condition = made.unit.split("-documents")[0]
    return made


def biased(bias: Profile, seed: int, *, facts: Mapping[str, Any] | None = None) -> list[Any]:
    """Prompts with a gold that is worth three times the others, and dummies: relevance times bias, with noise."""
    generator = np.random.default_rng(seed)
    traces = []
    for index in range(NUM_PROMPTS):
        gold = (0, 2, 5, 7, 9)[index % 5]
        relevance = generator.lognormal(0.0, 0.2, NUM_DOCUMENTS)
        relevance[gold] *= 3
        for turn in (0, 5):
            stands = np.roll(relevance, turn)
            noise = generator.lognormal(0.0, 0.1, NUM_DOCUMENTS)
            sample = document_sample(index, (gold + turn) % NUM_DOCUMENTS, turned=turn)
            role = "baseline" if turn == 0 else "other"
            attention = 0.004 * stands * bias(PLACES) * noise
            traces.append(document_trace(sample, attention, role=role, correct=index % 3 > 0))
        noise = generator.lognormal(0.0, 0.1, NUM_DOCUMENTS)
        dummies = document_sample(index, gold, given="all_dummies")
        traces.append(document_trace(dummies, 0.004 * bias(PLACES) * noise, role="other", correct=None))
    return traces


def null(seed: int) -> list[Any]:
    """Synthetic: 20 prompts of ten documents, with dummies, whose attention is what they say times noise."""
    return biased(lambda x: np.ones_like(x), seed)


def null_recency(seed: int) -> list[Any]:
    """Synthetic: the same prompts, with attention that doubles from the first document to the last: no U."""
    return biased(lambda x: 1 + x, seed)


def planted(strength: float, seed: int) -> list[Any]:
    """Both ends get this share more attention than the middle, along a parabola, whatever the documents say."""
    return biased(lambda x: 1 + strength * (2 * x - 1) ** 2, seed)

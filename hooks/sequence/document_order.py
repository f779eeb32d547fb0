"""The documents of a prompt in another order, with everything that stands in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from probe.errors import UsageError
from probe.hooks.attention.document_rows import is_document
from probe.sample import Sample, Span


def reordered(sample: Sample, documents: Sequence[tuple[int, int]], order: Sequence[int], who: str) -> Sample:
    """Return the sample with document `order[k]` at the place of document k; itself where nothing moves.

    What stands between documents stays between the places. Each document keeps its tokens, its heading and number
    among them, and spans within it move along; `document_3` is whichever then stands at the place that had the name.
    The facts `gold_index` and `needle_depth` say where the gold document stands then, `needle_depth_before` where it
    stood; `document_order` the order. Raises `UsageError` naming a span that holds part of a document and more.
    """
    if list(order) == list(range(len(documents))):
        return sample
    tokens: list[int] = []
    moved: list[int] = [0] * len(documents)
    edges: list[tuple[int, int]] = []
    read = 0
    for (start, stop), which in zip(documents, order, strict=True):
        first, last = documents[which]
        edges.append((read, len(tokens)))
        tokens += sample.tokens[read:start]
        moved[which] = len(tokens) - first
        edges.append((start, len(tokens)))
        tokens += sample.tokens[first:last]
        read = stop
    edges.append((read, len(tokens)))
    tokens += sample.tokens[read:]
    names = {(span.start, span.stop): span.name for span in sample.spans if is_document(span)}
    taken = {documents[which]: names[place] for place, which in zip(documents, order, strict=True) if place in names}
    spans = tuple(
        dataclasses.replace(
            _moved(span, documents, moved, edges, sample, who),
            name=taken.get((span.start, span.stop), span.name) if is_document(span) else span.name,
        )
        for span in sample.spans
    )
    return dataclasses.replace(
        sample, tokens=tuple(tokens), spans=spans, text="", facts={**sample.facts, **_facts(sample, order)}
    )


def _moved(
    span: Span,
    documents: Sequence[tuple[int, int]],
    moved: Sequence[int],
    edges: Sequence[tuple[int, int]],
    sample: Sample,
    who: str,
) -> Span:
    for (start, stop), by in zip(documents, moved, strict=True):
        if start <= span.start and span.stop <= stop:
            return Span(span.name, span.start + by, span.stop + by)
        inside = start < span.start < stop or start < span.stop < stop
        if inside:
            raise UsageError(
                f"{who}: span {span.name!r} of sample {sample.name!r} holds part of the document at {start} and more "
                "than it, so the documents cannot be moved"
            )
    # It stands between documents, or holds whole ones: both of its ends are at a place that stays one.
    return Span(span.name, _of_edge(span.start, edges), _of_edge(span.stop, edges))


def _of_edge(position: int, edges: Sequence[tuple[int, int]]) -> int:
    before, after = max(edge for edge in edges if edge[0] <= position)
    return after + position - before


def _facts(sample: Sample, order: Sequence[int]) -> dict[str, Any]:
    facts: dict[str, Any] = {"document_order": list(order)}
    gold = sample.facts.get("gold_index")
    if isinstance(gold, int) and gold in order:
        stands = list(order).index(gold)
        facts["gold_index"] = stands
        if "needle_depth" in sample.facts and len(order) > 1:
            facts |= {"needle_depth": stands / (len(order) - 1), "needle_depth_before": sample.facts["needle_depth"]}
    return facts

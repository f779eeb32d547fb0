"""What a trace holds of one head, read from its own chunks alone: series by position, histograms, the largest keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.head_reductions import layers_of
from probe.analyses.measures.token_labels import seen
from probe.errors import MissingStatistic, UsageError

if TYPE_CHECKING:
    from probe.storage.stored_array import StoredArray
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

MOST_RANKS: Final = 16
"""Largest keys of a query that are listed, at most."""


@dataclass(frozen=True)
class OfLayer:
    """One array of one layer."""

    name: str
    values: Floats
    """`[head …]`, the heads that the layer has."""
    places: NDArray[np.int64]
    """Where the entries along the last axis stand: positions, lower edges of distances, offsets."""
    block_tokens: int
    """How many positions an entry stands for; 1 where nothing was pooled."""
    unit: str
    definition: str


@dataclass(frozen=True)
class TopKey:
    """One of the keys that a query which made a token of the answer looked at most."""

    row: int
    query: int
    """Position of the query."""
    query_text: str
    rank: int
    key: int
    """Position of the key."""
    key_text: str
    probability: float
    spans: tuple[str, ...]
    """Names of the sample's spans that hold the key."""


def named(trace: Trace, statistic: str, layer: int) -> str:
    """Return the stored name of a statistic of a layer: as it is by default, else with parameters of its own.

    Raises MissingStatistic saying what to capture.
    """
    found = [name for name in _names(trace, statistic) if _holds(trace, name, layer)]
    if not found:
        raise MissingStatistic(
            f"{statistic} was not captured in layer {layer} of this unit. To see it: `{statistic}` in a casebook's "
            f"capture, or probe.trace(model, sample, statistics=['{statistic}'])"
        )
    return min(found, key=len)


def of_layer(trace: Trace, name: str, layer: int, *, head: int | None = None) -> OfLayer:
    """Return an array of a layer by its stored name, of one head alone where one is named.

    Raises UsageError for a layer or head that there is not, MissingStatistic for an array that there is not.
    """
    count = trace.heads.get(layer, 0)
    if not count or (head is not None and not 0 <= head < count):
        raise UsageError(f"there is no layer {layer} with a head {head or 0} in this trace")
    path, index = _found(trace, name, layer)
    array = trace.stored(path)
    rows = (0, count) if head is None else (head, head + 1)
    rest = [(0, size) for size in array.shape[len(index) + 1 :]]
    values = array.read(*((at, at + 1) for at in index), rows, *rest)
    prefix, last = path.rpartition("/")[0], array.dims[-1]
    places = _places(trace, f"{prefix}/{last}" if prefix else last, array)
    steps = np.diff(places[:2])
    pooled = int(steps[0]) if "block" in last and steps.size else 1
    return OfLayer(
        name,
        values.reshape(values.shape[len(index) :]).astype(np.float64),
        places,
        int(array.attributes.get("block_tokens") or pooled),
        str(array.attributes.get("unit") or ""),
        str(array.attributes.get("definition") or ""),
    )


def top_keys_of(trace: Trace, layer: int, head: int) -> list[TopKey]:
    """Return the keys that the queries which made the answer looked at most, row by row, largest first.

    Token text is made visible; of a private trace there is none. Raises as `named` and `of_layer` do.
    """
    stored = [name for name in _names(trace, "top_keys") if _holds(trace, name, layer)]
    name = max(stored, key=lambda each: trace.stored(_found(trace, each, layer)[0]).shape[-1], default="")
    name = name or named(trace, "top_keys", layer)
    keys = of_layer(trace, name, layer, head=head).values[0]
    probability = of_layer(trace, f"{name}_probability", layer, head=head).values[0]
    return list(_listed(trace, keys, probability))


def _listed(trace: Trace, keys: Floats, probability: Floats) -> Iterator[TopKey]:
    first = len(trace.sample) - 1
    for row, (places, masses) in enumerate(zip(keys, probability, strict=True)):
        for rank in range(min(len(places), MOST_RANKS)):
            if not np.isfinite(places[rank]) or places[rank] < 0 or not np.isfinite(masses[rank]):
                continue
            key = int(places[rank])
            spans = tuple(dict.fromkeys(span.name for span in trace.sample.spans if span.start <= key < span.stop))
            yield TopKey(
                row, first + row, _text(trace, first + row), rank, key, _text(trace, key), float(masses[rank]), spans
            )


def _text(trace: Trace, position: int) -> str:
    if trace.private:
        return ""
    tokens = trace.sample.tokens
    answered = () if trace.outcome is None else trace.outcome.response_tokens
    if position < len(tokens):
        token = tokens[position]
    elif position - len(tokens) < len(answered):
        token = answered[position - len(tokens)]
    else:
        return ""
    return seen(trace.token_text[token]) if token in trace.token_text else f"⟨token {token}⟩"


def _names(trace: Trace, statistic: str) -> list[str]:
    """Return the statistic's name with no parameters and, where all layers have it, with parameters of its own."""
    own = re.compile(rf"{statistic}(?:_[a-z]+(?:_[a-z]+)*_[0-9]+)?")
    return list(dict.fromkeys([statistic, *(name for name in trace.stored_names() if own.fullmatch(name))]))


def _holds(trace: Trace, name: str, layer: int) -> bool:
    try:
        _found(trace, name, layer)
    except MissingStatistic:
        return False
    return True


def _found(trace: Trace, name: str, layer: int) -> tuple[str, tuple[int, ...]]:
    """Return the path of a layer's array, and where the layer stands in it: nowhere, in a group of its own."""
    layers = layers_of(trace)
    if name in trace.stored_names() and layer in layers:
        return name, (layers.index(layer),)
    path = f"layers/{layer}/{name}"
    trace.stored(path)
    return path, ()


def _places(trace: Trace, path: str, array: StoredArray) -> NDArray[np.int64]:
    size = array.shape[-1]
    try:
        return trace.stored(path).read((0, size)).astype(np.int64)
    except MissingStatistic:
        # An axis without a coordinate, such as of rotary pairs, is counted from 0.
        return np.arange(size)

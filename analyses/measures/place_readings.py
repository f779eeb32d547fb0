"""What a prompt's arrays say by position: attention to the gold, how spread attention is, how badly tokens are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.dispersion import NEAR_END
from probe.selection import reads_the_text

if TYPE_CHECKING:
    from probe.storage.stored_array import StoredArray
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

GOLD: Final = "needle"
"""The span that holds what answers the question, in every workload that has one."""
MOST_NUMBERS: Final = 4_000_000
"""Numbers of one array that are read of a unit; of more than that some layers are read, evenly spaced."""


def gold_attention(trace: Trace) -> tuple[float, float] | None:
    """Return the attention to the gold as the first answer token is produced: mean over heads, and of the strongest.

    As `position_bias` defines it. None where the sample has no gold or that attention is not over its text.
    """
    spans = trace.labels("span")
    array = trace.stored("span_mass")
    if GOLD not in spans or not reads_the_text(trace) or 0 in array.shape:
        return None
    at = spans.index(GOLD)
    ranges = {"layer": (0, array.shape[0]), "head": (0, array.shape[1]), "row": (0, 1), "span": (at, at + 1)}
    mass = array.read(*(ranges[dim] for dim in array.dims)).astype(np.float64).reshape(array.shape[:2])
    heads = mass[np.isfinite(mass)] if _ragged(trace) else mass
    if heads.size == 0 or not np.isfinite(heads).all():
        return None
    return float(heads.mean()), float(heads.max())


@dataclass(frozen=True)
class ByHead:
    """A statistic by query of every head that a prompt's trace holds, of some layers where all would be too much."""

    position: Floats
    """`[query]` Position, the middle of a block where queries were pooled."""
    values: Floats
    """`[head query]` over the heads of the layers read, those that are not left out."""
    layers_read: int
    num_layers: int


def entropy_share(trace: Trace) -> ByHead:
    """Return H / ln(i + 1) from `entropy`, as `attention_dispersion` defines it; NaN at position 0."""
    array = trace.stored("entropy")
    position = _positions(trace, array)
    values, layers = _by_query(array, (0, array.shape[-1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = values * np.where(position > 0, 1 / np.log(position + 1), np.nan)
    return ByHead(position, share, layers, array.shape[0])


def largest_near_end(trace: Trace) -> ByHead:
    """Return `max_probability` over the last eighth of the queries before the question, or of all where none is."""
    array = trace.stored("max_probability")
    position = _positions(trace, array)
    stop = min((s.start for s in trace.sample.spans if s.name == "question" and s.start > 1), default=trace.num_queries)
    end = np.flatnonzero((position >= stop - max(1, stop // NEAR_END)) & (position < stop))
    if not end.size:
        end = np.flatnonzero(position < stop)[-1:]
    values, layers = _by_query(array, (int(end[0]), int(end[-1]) + 1))
    return ByHead(position[end], values, layers, array.shape[0])


def loss_by_class(trace: Trace) -> tuple[NDArray[np.int64], Floats]:
    """Return the first position of each class, and the mean loss of its tokens in nats; NaN where none has one.

    A class reaches from 2^(k/2) up to 2^((k+1)/2), so that two of them double the position.
    """
    array = trace.stored("loss")
    values = array.read((0, array.shape[0])).astype(np.float64)
    position = _positions(trace, array)
    size = int(position[-1]) + 1 if len(position) else 1
    first = np.unique([round(2 ** (k / 2)) for k in range(2 * max(size - 1, 1).bit_length())]).astype(np.int64)
    first = first[first < size]
    which = np.searchsorted(first, position, side="right") - 1
    there = np.isfinite(values) & (which >= 0)
    count = np.bincount(which[there], minlength=len(first))
    total = np.bincount(which[there], weights=values[there], minlength=len(first))
    return first, np.divide(total, count, out=np.full(len(first), np.nan), where=count > 0)


def _ragged(trace: Trace) -> bool:
    """Return whether layers differ in heads, so that the array is NaN where a head is not."""
    return len(set(trace.heads.values())) > 1


def _by_query(array: StoredArray, queries: tuple[int, int]) -> tuple[Floats, int]:
    """Return `[head query]` over layers, heads that are not left out, and how many layers were read."""
    layers, heads, _ = array.shape
    step = max(1, -(-layers * heads * (queries[1] - queries[0]) // MOST_NUMBERS))
    # At once where it is little: a chunk holds several layers.
    ranges = [(0, layers)] if step == 1 else [(at, at + 1) for at in range(0, layers, step)]
    values = np.concatenate([array.read(each, (0, heads), queries) for each in ranges])
    read = len(values)
    values = values.reshape(-1, values.shape[-1])
    return np.asarray(values[np.isfinite(values).any(-1)], np.float64), read


def _positions(trace: Trace, array: StoredArray) -> Floats:
    """Return the position of each entry of an array's last axis, the middle of a block where it is one of blocks."""
    dim, size = array.dims[-1], array.shape[-1]
    if dim not in trace.stored_names():
        return np.arange(size, dtype=np.float64)
    starts = trace.stored(dim).read((0, size)).astype(np.float64)
    block = starts[1] - starts[0] if dim.split("_")[0] + "_block" in dim and size > 1 else 1.0
    return np.asarray(starts + (block - 1) / 2, np.float64)

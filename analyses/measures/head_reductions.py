"""One number a head out of what a trace holds of it: means over queries, medians of histograms, largest shares."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from probe.storage.stored_array import StoredArray
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

_BLOCKS: Final = re.compile(r"(query|key)_block(?:_[0-9]+)?")
_NO_SCORES: Final = frozenset({"position", "queries", "keys", "pairs", "channel"})
"""Units of arrays that say where something is, or how many there were."""
_STEP_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class Reduction:
    """One number for each head of a trace, read when it is first asked for."""

    key: str
    """What it is called in an address: the array's name, and what was taken of it."""
    name: str
    """What it is called in words."""
    unit: str
    words: str
    """What the number is, and how the stored array was reduced to it."""
    stored_bytes: int
    """Size of the array that must be read for it."""
    read: Callable[[], Floats]
    """Returns `[layer head]` over all layers that are stored, NaN where a head is not or has a value that is none."""


def reductions(trace: Trace) -> Iterator[Reduction]:
    """Yield what can be had of a trace's arrays of all layers, without reading them.

    A value that is not finite makes its head's number NaN rather than be left out. Statistics that were limited to some
    layers lie in groups of their own and are no part of this.
    """
    names = trace.stored_names()
    for name in names:
        array = trace.stored(name)
        pooled_largest = name.endswith("_max") and name.removesuffix("_max") in names
        if pooled_largest or str(array.attributes.get("unit")) in _NO_SCORES:
            continue
        dims = tuple(_plain(dim) for dim in array.dims)
        taken = list(_takes(trace, name, array, dims))
        read = functools.cache(functools.partial(_read, trace, array, dims, [take for *_, take in taken]))
        for at, (key, words, title, unit, _) in enumerate(taken):
            size = math.prod(array.shape) * array.dtype.itemsize
            yield Reduction(key, title, unit, words, size, functools.partial(_one, read, at))


def layers_of(trace: Trace) -> list[int]:
    """Return the layers of the arrays that `reductions` reads, in their order."""
    if "layer" not in trace.stored_names():
        return []
    stored = trace.stored("layer")
    return [int(layer) for layer in stored.read((0, stored.shape[0]))]


def counts_of(trace: Trace, array: StoredArray, axis: str) -> tuple[Floats, int]:
    """Return how many positions each entry along the last axis stands for, and the size of a whole block."""
    size, dim = array.shape[-1], array.dims[-1]
    block = int(array.attributes.get("block_tokens", 1))
    if _BLOCKS.fullmatch(dim) is None or size == 0:
        return np.ones(size), 1
    starts = trace.stored(dim).read((0, size)).astype(np.float64)
    block = block if block > 1 or size < 2 else int(starts[1] - starts[0])
    # The last block ends with the text.
    return np.minimum(np.diff(starts, append=max(trace.num_queries, starts[-1] + 1)), max(block, 1)), block


_Take = Callable[[Floats], Floats]
_Taken = tuple[str, str, str, str, _Take]


def _takes(trace: Trace, name: str, array: StoredArray, dims: tuple[str, ...]) -> Iterator[_Taken]:
    """Yield key, words, name and unit of each number that an array gives, and what makes it of `[layer head …]`."""
    unit, said = str(array.attributes.get("unit") or ""), name.replace("_", " ")
    defined = str(array.attributes.get("definition") or said).rstrip(".")
    base = re.sub(r"_(horizon|window)_[0-9]+$", "", name)
    if dims == ("layer", "head", "query"):
        counts, block = counts_of(trace, array, "query")
        how = f"Mean over the {int(counts.sum()):,} queries{_pooled(block, 'mean')} of: {defined}."
        title = said if said.startswith("mean ") else f"mean {said}"
        yield name, how, title, unit, _mean(counts)
    elif dims == ("layer", "kv_head", "key"):
        counts, block = counts_of(trace, array, "key")
        how = f"Mean over keys{_pooled(block, 'mean')} of the key-value head that it reads: {defined}."
        yield name, how, f"mean {said}", unit, _mean(counts)
    elif dims == ("layer", "head", "key") and base in ("received_mass", "window_mass"):
        counts, block = counts_of(trace, array, "key")
        one = "key" if block <= 1 else f"block of {block:,} keys"
        how = f"Of all that a head's keys receive ({defined}), the share of the {{}} {one}; this toolkit's own."
        yield f"{name}.largest", how.format("most attended"), f"largest share of {said}", "share", _share(counts, None)
        yield f"{name}.first", how.format("first"), f"share of {said}: first {one}", "share", _share(counts, 0)
    elif name == "distance_histogram" and dims == ("layer", "head", "distance_bin"):
        edges = trace.stored("distance_bin").read((0, array.shape[-1])).astype(np.float64)
        how = (
            "Half of all attention goes to keys no further than this behind the query, the mass within a distance bin "
            "taken as even; this toolkit's own reduction of distance_histogram."
        )
        yield f"{name}.median", how, "median distance", "tokens", functools.partial(_median, edges)
    elif name.startswith("offset_mass") and dims == ("layer", "head", "offset"):
        offsets = trace.stored("offset").read((0, array.shape[-1])).astype(np.int64).tolist()
        for offset, whom in ((0, "itself"), (1, "the token before")):
            if offset in offsets and trace.num_queries > offset:
                how = f"Mean p of a query on {whom}: offset_mass over the {trace.num_queries - offset:,} such queries."
                at, queries = offsets.index(offset), trace.num_queries - offset
                yield f"{name}.{offset}", how, f"attention on {whom}", "probability", _at(at, queries)
    elif dims == ("layer", "head", "row", "span"):
        for at, span in enumerate(trace.labels("span")):
            how = f"Mean over the {array.shape[2]} queries that made the answer, for the span {span!r}: {defined}."
            yield f"{name}.{span}", how, f"{said}: {span}", unit, _of_span(at)
    elif dims == ("layer", "head", "row"):
        how = f"Mean over the {array.shape[2]} queries that made the answer: {defined}."
        yield name, how, f"mean {said}", unit, _mean(np.ones(array.shape[-1]))
    elif dims == ("layer", "head", "row", "rank") and name.endswith("_probability"):
        how = f"The largest p_ij, mean over the {array.shape[2]} queries that made the answer."
        yield name, how, "largest p, answer's queries", unit, lambda values: values[..., 0].mean(-1, dtype=np.float64)
    elif dims == ("layer", "head"):
        yield name, f"{defined}.", said, unit, lambda values: values


def _one(read: Callable[[], list[Floats]], at: int) -> Floats:
    return read()[at]


def _read(trace: Trace, array: StoredArray, dims: tuple[str, ...], takes: Sequence[_Take]) -> list[Floats]:
    """Return every number of each head that an array gives, reading as few layers at once as memory wants."""
    num_layers, rest = array.shape[0], array.shape[1:]
    row_bytes = max(1, math.prod(rest) * array.dtype.itemsize)
    per_step = max(array.chunks[0], _STEP_BYTES // row_bytes // array.chunks[0] * array.chunks[0])
    found: list[list[Floats]] = [[] for _ in takes]
    for start in range(0, num_layers, per_step):
        values = array.read((start, min(start + per_step, num_layers)), *((0, size) for size in rest))
        # Sums over what is not finite: nothing to warn of, it comes out as NaN.
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            for parts, take in zip(found, takes, strict=True):
                taken = take(values)
                parts.append(np.where(np.isfinite(taken), taken, np.nan))
    joined = [np.concatenate(parts) if parts else np.empty((0, rest[0] if rest else 0)) for parts in found]
    return [_by_query_head(trace, each) for each in joined] if dims[1] == "kv_head" else joined


def _by_query_head(trace: Trace, by_kv_head: Floats) -> Floats:
    heads, layers = trace.heads, layers_of(trace)
    counts = kv_heads_of(trace)
    wide = np.full((len(layers), max((heads.get(layer, 0) for layer in layers), default=0)), np.nan)
    for row, layer in enumerate(layers):
        num, num_kv = heads.get(layer, 0), counts.get(layer, 0)
        if num and num_kv and num % num_kv == 0:
            wide[row, :num] = np.repeat(by_kv_head[row, :num_kv], num // num_kv)
    return wide


def kv_heads_of(trace: Trace) -> dict[int, int]:
    """Return the number of key-value heads of each layer; {} where neither an array nor the provenance says it."""
    layers = layers_of(trace)
    if "num_kv_heads" in trace.stored_names():
        counts = trace.stored("num_kv_heads").read((0, len(layers)))
        return {layer: int(count) for layer, count in zip(layers, counts, strict=True) if count > 0}
    said = trace.provenance.get("key_value_heads")
    if not isinstance(said, list) or not all(type(count) is int for count in said):
        return {}
    return {layer: said[layer] for layer in trace.heads if layer < len(said) and said[layer] > 0}


def _plain(dim: str) -> str:
    found = _BLOCKS.fullmatch(dim)
    return dim if found is None else found[1]


def _pooled(block: int, what: str) -> str:
    return f" (stored as the {what} of each {block:,}, weighted by how many)" if block > 1 else ""


def _sum(values: Floats, counts: Floats) -> Floats:
    """Return the weighted sum along the last axis in float64; all entries but the last have the same weight."""
    return np.asarray(values[..., :-1].sum(-1, dtype=np.float64) * counts[0] + values[..., -1] * counts[-1])


def _mean(counts: Floats) -> _Take:
    return lambda values: _sum(values, counts) / counts.sum()


def _share(counts: Floats, at: int | None) -> _Take:
    def take(values: Floats) -> Floats:
        most = np.maximum(values[..., :-1].max(-1, initial=0.0) * counts[0], values[..., -1] * counts[-1])
        one = most if at is None else values[..., at] * counts[at]
        return np.asarray(one / _sum(values, counts))

    return take


def _at(at: int, queries: int) -> _Take:
    return lambda values: np.asarray(values[..., at], np.float64) / queries


def _of_span(at: int) -> _Take:
    return lambda values: values[..., at].mean(-1, dtype=np.float64)


def _median(edges: Floats, mass: Floats) -> Floats:
    """Return the distance within which half of the mass `[… distance_bin]` lies; bins are {0}, [1, 2), [2, 4), …"""
    total = mass.sum(-1, keepdims=True, dtype=np.float64)
    reached = np.cumsum(mass, -1, dtype=np.float64) / total
    at = (reached >= 0.5).argmax(-1)
    before = np.take_along_axis(reached, np.maximum(at - 1, 0)[..., None], -1)[..., 0] * (at > 0)
    inside = np.take_along_axis(mass, at[..., None], -1)[..., 0] / total[..., 0]
    low = edges[at]
    # Bin [a, 2a) holds the whole distances a to 2a - 1; {0} and {1} hold one each.
    wide = np.maximum(low - 1, 0)
    return np.asarray(low + wide * (0.5 - before) / inside)

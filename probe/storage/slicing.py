"""Parts of a trace: some layers, heads and positions, labelled by their own numbers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from probe.errors import UsageError
from probe.storage.block_axes import BLOCK_AXES, plain_dim

if TYPE_CHECKING:
    import xarray as xr

_POSITIONS: Final = ("query", "key", "token", "position")


def select(
    dataset: xr.Dataset,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    positions: slice | None = None,
) -> xr.Dataset:
    """Return the part of a trace's arrays that is of these layers, query heads and positions, not yet read.

    Layers, heads and the key-value heads that these heads read carry their own numbers as coordinates. `positions`
    cuts every axis of queries, keys and tokens, and keeps a block that it touches; what an array had summed over stays
    summed. Raises IndexError naming what there is, UsageError where no array has such an axis.
    """
    if layers is not None:
        if "layer" not in dataset.dims:
            raise UsageError("there are no layers to choose: no array has a layer axis")
        there = dataset["layer"].values.tolist()
        dataset = dataset.isel(layer=[_place("layer", layer, there) for layer in layers])
    if heads is not None:
        dataset = _of_heads(dataset, heads)
    if positions is not None:
        dataset = _of_positions(dataset, positions)
    return dataset


def _of_heads(dataset: xr.Dataset, heads: Sequence[int]) -> xr.Dataset:
    if "head" not in dataset.dims:
        raise UsageError("there are no heads to choose: no array has a head axis")
    num_heads, num_kv_heads = dataset.sizes["head"], dataset.sizes.get("kv_head")
    chosen = [_place("head", head, list(range(num_heads))) for head in heads]
    if num_kv_heads is not None:
        groups = {num_heads // num_kv_heads}
        if "num_heads" in dataset and "num_kv_heads" in dataset:
            counts = zip(dataset["num_heads"].values.tolist(), dataset["num_kv_heads"].values.tolist(), strict=True)
            groups = {n // kv for n, kv in counts if n > 0 and kv > 0}
        if len(groups) != 1:
            raise UsageError("the layers share keys among heads in different ways; choose layers that do so alike")
        (group,) = groups
        kv_heads = sorted({head // group for head in chosen})
        dataset = dataset.isel(kv_head=kv_heads).assign_coords(kv_head=kv_heads)
    return dataset.isel(head=chosen).assign_coords(head=chosen)


def _of_positions(dataset: xr.Dataset, positions: slice) -> xr.Dataset:
    if not isinstance(positions, slice) or positions.step not in (None, 1):
        raise UsageError(f"positions must be a slice of consecutive positions, not {positions!r}")
    cut: dict[str, Any] = {}
    last = 0
    starts: dict[str, tuple[np.ndarray[Any, Any], int]] = {}
    for dim in map(str, dataset.dims):
        word, tokens = plain_dim(dim)
        if word in (*_POSITIONS, *BLOCK_AXES):
            first = dataset[dim].values if dim in dataset.coords else np.arange(dataset.sizes[dim])
            # A trace of format 1 says the size of its blocks by their positions alone.
            tokens = tokens or (int(first[1] - first[0]) if word in BLOCK_AXES and len(first) > 1 else 1)
            starts[dim] = first, tokens
            last = max(last, int(first.max(initial=-1)) + tokens)
    if not starts:
        raise UsageError("there are no positions to choose: no array has an axis of them")
    start = 0 if positions.start is None else operator.index(positions.start)
    stop = last if positions.stop is None else operator.index(positions.stop)
    if not 0 <= start <= stop <= last:
        raise IndexError(f"positions {start}:{stop} lie outside of the trace; valid positions are 0:{last}")
    for dim, (first, tokens) in starts.items():
        inside = np.flatnonzero((first < stop) & (first + tokens > start))
        cut[dim] = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
    return dataset.isel(cut)


def _place(what: str, number: int, there: list[int]) -> int:
    if operator.index(number) not in there:
        raise IndexError(f"there is no {what} {number}; there are {', '.join(map(str, there))}")
    return there.index(number)

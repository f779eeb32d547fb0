"""Statistics of several traces as one, where that is exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from probe.errors import UsageError
from probe.storage.block_axes import plain_dim, stored_dim

if TYPE_CHECKING:
    import xarray as xr

    from probe.storage.unit_trace import Trace

_OWN: Final = ("query", "token", "row", "step", "position", "query_block", "token_block")
"""Axes whose entries are one prompt's own."""


def merge(traces: Iterable[Trace], statistics: Sequence[str] | None = None) -> xr.Dataset:
    """Return what the traces' sums, counts and maxima are together, as if all their prompts had been one capture.

    Sums and counts add up, position by position from the first; maxima take the larger; a map of equal blocks is the
    mean over all the queries of a cell. `statistics` are array names, each of which must merge exactly; without them
    all that do are merged, and the attribute `not_merged` says why each other one is not. Raises UsageError for
    nothing, for traces of different models or layers, and naming a statistic that does not merge and why.
    """
    import xarray as xr

    traces = list(traces)
    if not traces:
        raise UsageError("there is nothing to merge")
    _check_alike(traces)
    names = sorted({str(name) for trace in traces for name in trace.dataset.data_vars} - {"num_heads", "num_kv_heads"})
    merged: dict[str, xr.DataArray] = {}
    refused: dict[str, str] = {}
    for name in names if statistics is None else statistics:
        why = _refusal(traces, name)
        if why is None:
            merged[name] = _merged(traces, name)
        elif statistics is not None:
            raise UsageError(f"{name!r} does not merge exactly: {why}")
        else:
            refused[name] = why
    dataset = xr.Dataset(merged)
    if "layer" in dataset.dims:
        dataset = dataset.assign_coords(layer=traces[0].dataset["layer"])
    dataset.attrs |= {"num_traces": len(traces), "not_merged": [f"{name}: {why}" for name, why in refused.items()]}
    return dataset


def _check_alike(traces: Sequence[Trace]) -> None:
    first = traces[0]
    for trace in traces[1:]:
        for key in ("weights_sha256", "dtype"):
            if trace.provenance.get(key) != first.provenance.get(key):
                raise UsageError(f"{trace.unit!r} and {first.unit!r} are of different models: they differ in {key}")
        for name in ("layer", "num_heads", "num_kv_heads"):
            sides = [each.dataset[name].values.tolist() for each in (first, trace) if name in each.dataset.variables]
            if len(sides) == 1 or sides[:1] != sides[1:]:
                raise UsageError(f"{trace.unit!r} and {first.unit!r} do not have the same layers and heads")


def _refusal(traces: Sequence[Trace], name: str) -> str | None:
    """Return why an array of all the traces does not merge exactly; None where it does."""
    if lacking := next((trace.unit for trace in traces if name not in trace), None):
        return f"the trace {lacking!r} lacks it"
    arrays = [trace[name] for trace in traces]
    law, blocks = arrays[0].attrs.get("merge"), arrays[0].attrs.get("block_tokens")
    if any(array.dims != arrays[0].dims or array.dtype != arrays[0].dtype for array in arrays):
        return "the traces hold it over different axes, one of them pooled"
    if len({array.attrs.get("block_tokens") for array in arrays}) > 1:
        return "its blocks have different sizes"
    if _is_map(name):
        return None
    if own := [dim for dim in map(str, arrays[0].dims) if plain_dim(dim)[0] in _OWN]:
        return f"its axis {own[0]!r} is one prompt's own"
    if law not in ("sum", "max"):
        return f"its parts combine by {law or 'no law that is known'!r}, not by a sum or a maximum"
    if blocks is not None and law == "sum":
        if name.endswith("_max"):
            return "the largest of a block's sums is not known from the largest of each part"
        if len({(array.shape, trace.num_queries) for array, trace in zip(arrays, traces, strict=True)}) > 1:
            return "it is pooled over blocks, of which the last is not equally long in all traces"
    for dim in ("offset", "channel", "component", "span"):
        sides = [array[dim].values if dim in array.coords else np.arange(array.sizes.get(dim, 0)) for array in arrays]
        if any(not np.array_equal(side, sides[0]) for side in sides):
            return f"the traces differ along {dim!r}"
    return None


def _is_map(name: str) -> bool:
    return name.startswith("attention_map")


def _merged(traces: Sequence[Trace], name: str) -> xr.DataArray:
    arrays = [trace[name] for trace in traces]
    shape = tuple(np.max([array.shape for array in arrays], 0))
    largest = arrays[0].attrs.get("merge") == "max"
    integers = arrays[0].dtype.kind in "iu"
    total = np.zeros(shape, np.int64 if integers else np.float64)
    weight = np.zeros(shape[-2] if _is_map(name) else 0)
    for trace, array in zip(traces, arrays, strict=True):
        part = total[tuple(map(slice, array.shape))]
        values = array.values.astype(total.dtype)
        if largest:
            np.maximum(part, values, out=part)
        elif _is_map(name):
            tokens = int(array.attrs["block_tokens"])
            count = np.clip(trace.num_queries - np.arange(array.shape[-2]) * tokens, 0, tokens)
            weight[: len(count)] += count
            part += values * count[:, None]
        else:
            part += values
    if _is_map(name) and not largest:
        total /= np.maximum(weight, 1)[:, None]
    return _labelled(arrays, total.astype(np.int64 if integers else arrays[0].dtype))


def _labelled(arrays: Sequence[xr.DataArray], values: np.ndarray[Any, Any]) -> xr.DataArray:
    """Return the values with the axes of the arrays, each with the coordinate of the longest."""
    import xarray as xr

    tokens = arrays[0].attrs.get("block_tokens")
    dims = [str(dim) for dim in arrays[0].dims]
    longest = {
        dim: max((array[dim].values for array in arrays if dim in array.coords), key=len)
        for dim in dims
        if dim != "layer" and dim in arrays[0].coords
    }
    # Blocks of several sizes may stand in one dataset.
    stored = {dim: stored_dim(dim, tokens) for dim in dims}
    coordinates = {stored[dim]: labels for dim, labels in longest.items()}
    return xr.DataArray(values, coordinates, [stored[dim] for dim in dims], attrs=dict(arrays[0].attrs))

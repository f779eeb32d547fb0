"""Statistics of single queries as means over the queries from a position on, whether or not they were pooled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]


def num_queries(trace: Trace) -> int:
    """Return how many queries were seen: the prompt's, and those of the answer's tokens but the last."""
    decoded = 0 if trace.outcome is None else max(0, len(trace.outcome.response_tokens) - 1)
    return len(trace.sample) + decoded


def by_query(trace: Trace, name: str) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Return `[layer head query]` values, the position that each begins at, and how many queries it is the mean of."""
    array = trace[name]
    axis = "query_block" if "query_block" in array.dims else "query"
    values = array.transpose("layer", "head", axis).to_numpy().astype(np.float64)
    start = np.asarray(array[axis].to_numpy() if axis in array.coords else np.arange(values.shape[-1]), np.int64)
    weight = np.ones_like(start)
    if axis == "query_block":
        weight = np.diff(start, append=num_queries(trace))
    return values, start, weight


def mean_from(trace: Trace, name: str, first: int) -> Floats:
    """Return `[layer head]` means over queries from position `first` on; NaN where there are none.

    Of a pooled array the blocks count that begin there or later.
    """
    values, start, weight = by_query(trace, name)
    counted = start >= first
    if not counted.any():
        return np.full(values.shape[:2], np.nan)
    return np.asarray(np.average(values[..., counted], axis=-1, weights=weight[counted]), np.float64)


def at_query(trace: Trace, name: str, position: int) -> Floats:
    """Return `[layer head]` values at a position; of a pooled array those of the block that holds it."""
    values, start, _ = by_query(trace, name)
    return values[..., int(np.searchsorted(start, position, side="right")) - 1]


def windows(trace: Trace, statistic: str = "received_mass") -> NDArray[np.int64] | None:
    """Return how many keys a query of each layer sees at most, `[layer]`; None where the trace does not say.

    As many queries see the first key as the window is long. A pooled array does not say it.
    """
    name = f"{statistic}_num_queries"
    if name not in trace or "key" not in trace[name].dims:
        return None
    seen = trace[name].transpose("layer", "key").to_numpy()[:, 0]
    return np.asarray(np.where(seen > 0, seen, num_queries(trace)), np.int64)

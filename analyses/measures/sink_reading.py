"""What a trace says of its sinks: how much attention each early key takes, and what goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from probe.selection import LeftOut, holding, reads_the_text

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

NUM_SINK: Final = 4
"""First keys that count as possible sinks (Xiao et al. 2023)."""
NUM_RECENT: Final = 64
"""Last keys that count as recent."""


@dataclass(frozen=True)
class SinkReading:
    """One prompt's numbers; those beside the metric are None where they were not captured for each token."""

    prompt: str
    unit: str
    alpha: Floats
    """Importance of each key, `[layer head key]`, keys up to half the horizon."""
    windows: NDArray[np.int64]
    """How many keys a query sees at most, `[layer]`; the horizon where it is as many or more."""
    first: Floats | None
    """Mass on the first four keys, mean over the queries after them, `[layer head]`."""
    first_uniform: float
    recent: Floats | None
    """Mass on the last 64 keys, for queries whose last 64 do not reach the first four, `[layer head]`."""
    first_there: Floats | None
    """Mass on the first four keys for those same queries, `[layer head]`."""
    drain: Floats | None
    """Value norm of the first token over the median of the others, mean over key-value heads, `[layer]`."""
    learned: Floats | None
    """Share of a learned sink, mean over all queries, `[layer head]`; None where the model has none."""


def sink_readings(traces: list[Trace], horizon: int, left_out: LeftOut) -> Iterator[SinkReading]:
    """Yield what each prompt says, those of which nothing can be said left out and counted.

    Raises MissingStatistic where no trace holds `received_mass` with this horizon.
    """
    name = f"received_mass_horizon_{horizon}"
    usable = []
    for trace in traces:
        if trace.outcome is not None and trace.outcome.failed:
            left_out.add("the unit failed")
        elif not reads_the_text(trace):
            left_out.add('the text stands in the encoder: its trace to read is trace.part("encoder")')
        elif len(trace.sample) < horizon:
            left_out.add(f"the prompt is shorter than the horizon of {horizon} tokens")
        else:
            usable.append(trace)
    for trace in holding(usable, name, left_out):
        array = trace[name]
        if "key" not in array.dims:
            left_out.add("received mass was pooled over blocks, so that the first key's own is lost")
            continue
        mass = array.isel(key=slice(0, horizon // 2)).transpose("layer", "head", "key").to_numpy().astype(np.float64)
        if not np.isfinite(mass).all():
            left_out.add("attention was not finite")
            continue
        windows = np.full(len(mass), horizon, np.int64)
        if f"{name}_num_queries" in trace:
            # The first key is seen by as many queries as the window is long.
            seen = trace[f"{name}_num_queries"].isel(key=0).to_numpy()
            windows = np.where(seen > 0, np.minimum(seen, horizon), horizon).astype(np.int64)
        yield _beside(trace, mass / (horizon - np.arange(mass.shape[-1])), windows, horizon)


def _beside(trace: Trace, alpha: Floats, windows: NDArray[np.int64], horizon: int) -> SinkReading:
    """Return a prompt's reading: the importance, and what stands beside it where it was captured.

    Masses are means over the queries from the horizon on, so that a trace that is pooled over blocks that divide it
    gives the same numbers.
    """
    first = recent = first_there = drain = learned = None
    if "sink_mass_learned" in trace:
        values, _, weight = _over_queries(trace, "sink_mass_learned")
        learned = np.average(values, axis=-1, weights=weight)
    first_uniform = float("nan")
    if "sink_mass" in trace:
        sink, start, weight = _over_queries(trace, "sink_mass")
        after = start >= max(horizon, NUM_SINK)
        if after.any():
            first = np.average(sink[..., after], axis=-1, weights=weight[after])
            position = np.arange(start[after][0], start[-1] + weight[-1])
            first_uniform = float(np.mean([_first_uniform(position, int(at), horizon) for at in windows]))
        apart = start >= max(2 * horizon, NUM_SINK + NUM_RECENT)
        if "recent_mass" in trace and apart.any():
            near, _, _ = _over_queries(trace, "recent_mass")
            if near.shape == sink.shape:
                recent = np.average(near[..., apart], axis=-1, weights=weight[apart])
                first_there = np.average(sink[..., apart], axis=-1, weights=weight[apart])
    if "value_norm" in trace and "key" in trace["value_norm"].dims:
        norm = trace["value_norm"].transpose("layer", "kv_head", "key").to_numpy().astype(np.float64)
        if norm.shape[-1] > NUM_SINK:
            drain = (norm[..., 0] / np.median(norm[..., NUM_SINK:], axis=-1)).mean(axis=-1)
    kept = [None if value is None or not np.isfinite(value).all() else value for value in (first, recent, first_there)]
    return SinkReading(
        trace.sample.name,
        trace.unit,
        alpha,
        windows,
        kept[0],
        first_uniform,
        kept[1] if kept[2] is not None else None,
        kept[2] if kept[1] is not None else None,
        None if drain is None or not np.isfinite(drain).all() else drain,
        None if learned is None or not np.isfinite(learned).all() else learned,
    )


def _first_uniform(position: NDArray[np.int64], window: int, horizon: int) -> float:
    """Return the mean mass on the first four keys of queries at these positions, were attention uniform."""
    # A window that reaches past the horizon cannot be told from none.
    start = np.maximum(position - window + 1, 0) if window < horizon else np.zeros_like(position)
    return float(np.mean(np.maximum(NUM_SINK - start, 0) / (position + 1 - start)))


def _over_queries(trace: Trace, name: str) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Return a statistic `[layer head query]`, each entry's first position, and how many queries it stands for."""
    array = trace[name]
    pooled = "query_block" in array.dims
    axis = "query_block" if pooled else "query"
    values = array.transpose("layer", "head", axis).to_numpy().astype(np.float64)
    start = array[axis].to_numpy() if axis in array.coords else np.arange(values.shape[-1])
    weight = np.ones_like(start)
    if pooled:
        decoded = 0 if trace.outcome is None else max(0, len(trace.outcome.response_tokens) - 1)
        weight = np.diff(start, append=len(trace.sample) + decoded)
    return values, np.asarray(start, np.int64), np.asarray(weight, np.int64)

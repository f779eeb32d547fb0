"""One row for each recurrent head: how its state and its reach differ within the training length and beyond."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from probe.analyses.measures.state_growth import REACHES, Growth
from probe.analyses.measures.state_readings import Floats, StateReading, recurrent_values
from probe.finding import Suggestion

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

COLUMNS = (
    "layer",
    "state_head",
    "ratio_at_twice",
    "ratio_low",
    "ratio_high",
    "q",
    "explodes",
    "ratio_at_end",
    "slope",
    "onset_tokens",
    "mean_lowest_within",
    "mean_highest_within",
    "mean_at_end",
    "largest_within",
    "largest_at_end",
    "peak_within",
    "peak_at_end",
    "decay_within",
    "decay_beyond",
    "distance_within",
    "distance_beyond",
)


def state_rows(
    growth: Growth, readings: Sequence[StateReading], traces: Sequence[Trace], trained: int, seed: int
) -> Iterator[tuple[JsonValue, ...]]:
    """Yield a row a head, by layer and head; readings are those that growth was measured on.

    What stands `at_end` is of the longest texts alone.
    """
    ratio, low, high = growth.ratio(seed)
    within = [reading.tokens <= trained for reading in readings]
    pairs = list(zip(readings, within, strict=True))
    end = max(reading.tokens[-1] for reading in readings)
    ends = [index for index, reading in enumerate(readings) if reading.tokens[-1] == end]
    longest = [readings[index] for index in ends]
    columns: list[Floats] = [
        np.exp(growth.log_ratio_at_end[ends].mean(0)),
        growth.slope.mean(0),
        np.median(growth.onset, axis=0),
        np.mean([reading.mean[:, here].min(1) for reading, here in pairs], axis=0),
        np.mean([reading.mean[:, here].max(1) for reading, here in pairs], axis=0),
        np.mean([reading.mean[:, -1] for reading in longest], axis=0),
        np.mean([reading.largest[:, here].max(1) for reading, here in pairs], axis=0),
        np.mean([reading.largest[:, -1] for reading in longest], axis=0),
        np.mean([_peak(reading)[:, here].mean(1) for reading, here in pairs], axis=0),
        np.mean([_peak(reading)[:, -1] for reading in longest], axis=0),
        *_decays(traces, trained, len(growth.heads)),
        *_distances(traces, trained, len(growth.heads)),
    ]
    for index, (layer, head) in enumerate(growth.heads):
        exact = [ratio[index], low[index], high[index], growth.q[index]]
        yield (
            layer,
            head,
            *map(_number, exact),
            bool(growth.explodes[index]),
            *(_number(column[index]) for column in columns),
        )


def to_forget_faster(
    rows: Sequence[tuple[JsonValue, ...]], kinds: Mapping[str, Sequence[int]], trained: int
) -> Iterator[Suggestion]:
    """Suggest that heads that explode forget faster, so that a training length leaves 1/e of what a state holds.

    `kinds` are the model's recurrent layers by kind, as its provenance has them; only Mamba's and Mamba-2's can.
    """
    layers = {layer for kind in ("mamba1", "mamba2") for layer in kinds.get(kind, ())}
    heads: list[JsonValue] = []
    factors: list[JsonValue] = []
    for row in (dict(zip(COLUMNS, row, strict=True)) for row in rows):
        decay = row["decay_within"]
        if not row["explodes"] or row["layer"] not in layers or not isinstance(decay, float) or not 0 < decay < 1:
            continue
        factor = 1 / (-np.log(decay) * trained)
        if factor > 1:
            heads.append([row["layer"], row["state_head"]])
            factors.append(float(f"{factor:.3g}"))
    if heads:
        yield Suggestion(
            intervention="forget_faster",
            fields={"heads": heads, "factors": factors},
            reason=f"Their states grow without end; with these powers of their decay {trained:,} tokens leave 1/e of "
            "what a state holds, and recall shows whether that was what was missing.",
        )


def _peak(reading: StateReading) -> Floats:
    """Return the largest entry over the root mean square of all: how far a few entries stand out."""
    return np.asarray(reading.largest / np.sqrt(reading.variance + reading.mean**2))


def _decays(traces: Sequence[Trace], trained: int, num_heads: int) -> tuple[Floats, Floats]:
    parts: tuple[list[Floats], list[Floats]] = [], []
    for trace in traces:
        found = recurrent_values(trace, "decay")
        if found is None or len(found[0]) != num_heads:
            continue
        values, starts = found
        for part, here in zip(parts, (starts < trained, starts >= trained), strict=True):
            if here.any():
                part.append(values[:, here].mean(1))
    return _means(parts[0], num_heads), _means(parts[1], num_heads)


def _distances(traces: Sequence[Trace], trained: int, num_heads: int) -> tuple[Floats, Floats]:
    """Return the mean effective distance of the first decoded row, in texts within and from twice the length on."""
    parts: tuple[list[Floats], list[Floats]] = [], []
    for trace in traces:
        found = recurrent_values(trace, "effective_distance")
        if found is None or len(found[0]) != num_heads:
            continue
        if len(trace.sample) <= trained:
            parts[0].append(found[0][:, 0])
        elif len(trace.sample) >= REACHES * 2 * trained:
            parts[1].append(found[0][:, 0])
    return _means(parts[0], num_heads), _means(parts[1], num_heads)


def _means(part: list[Floats], num_heads: int) -> Floats:
    """Return each head's mean over texts of what is a number; NaN where nothing is."""
    values = np.array(part).reshape(-1, num_heads)
    there = np.isfinite(values)
    total = np.where(there, values, 0.0).sum(0)
    return np.asarray(np.divide(total, there.sum(0), out=np.full(num_heads, np.nan), where=there.any(0)), np.float64)


def _number(value: float) -> JsonValue:
    return float(f"{value:.6g}") if np.isfinite(value) else None

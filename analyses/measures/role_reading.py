"""What one prompt says of each head's role: where its attention goes, and what would go there by chance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.query_means import at_query, by_query, mean_from, num_queries, windows
from probe.analyses.measures.token_matches import by_distance_alone
from probe.selection import LeftOut, holding, reads_the_text

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

NUM_SINK: Final = 4
"""First keys that count as sinks (Xiao et al. 2023)."""
ROLES: Final = ("streaming", "recency", "previous token", "duplicate token", "induction")
"""The roles, as tables name them."""
SHAPES: Final = {"A-shape": "_a_shape", "vertical and slash": "", "block-sparse": "_block_sparse"}
"""MInference's shapes, as tables name them, and how their arrays of `sparse_shape_mass` end."""


@dataclass(frozen=True)
class RoleReading:
    """One prompt's numbers, of every head."""

    prompt: str
    unit: str
    scores: Floats
    """Attention that goes where the role says, `[role layer head]`."""
    chance: Floats
    """What goes there by the head's reach alone: uniform attention over what its window lets it see; for matches of
    tokens, its own attention by distance; `[role layer head]`."""
    recency_apart: Floats
    """Recent attention as a share of what the sinks leave, `[layer head]`."""
    lazy: Floats | None
    """Attention of the prompt's last query on the sinks and the last keys, mean over heads, `[layer]`; None where the
    prompt is too short for the window to leave anything out."""
    shapes: Floats | None
    """Attention that each of MInference's shapes retains, `[shape layer head]`; NaN for layers that see a window; None
    where it was not captured, or the prompt is too short for blocks."""
    logit: Floats | None
    """What each head adds directly to the right answer's logit over a distractor's, mean over its tokens, `[layer
    head]`; None where it was not captured."""


def statistic_name(name: str, **parameters: tuple[int, int]) -> str:
    """Return the name of an array whose parameters are given as (value, default)."""
    return "_".join([name, *(f"{key}_{value}" for key, (value, default) in parameters.items() if value != default)])


def role_readings(traces: Iterable[Trace], recent: int, lazy_window: int, left_out: LeftOut) -> Iterator[RoleReading]:
    """Yield what each prompt says; those of which nothing can be said are left out and counted.

    Raises MissingStatistic where no trace holds a statistic that is needed.
    """
    recency, needed = statistic_name("recent_mass", recent=(recent, 64)), ("sink_mass", "offset_mass", "match_mass")
    usable = []
    for trace in traces:
        if trace.outcome is not None and trace.outcome.failed:
            left_out.add("the unit failed")
        elif not reads_the_text(trace):
            left_out.add('the text stands in the encoder: its trace to read is trace.part("encoder")')
        elif len(trace.sample) <= 4 * recent:
            left_out.add(f"the prompt is not longer than four times the {recent} recent tokens")
        else:
            usable.append(trace)
    for name in (recency, *needed, "match_mass_by_induction", "distance_histogram"):
        usable = holding(usable, name, left_out)
    for trace in usable:
        reading = _reading(trace, recent, lazy_window, recency)
        if reading is None:
            left_out.add("attention was not finite")
        else:
            yield reading


def _reading(trace: Trace, recent: int, lazy_window: int, recency: str) -> RoleReading | None:
    num, first = num_queries(trace), 4 * recent
    near, sinks = mean_from(trace, recency, first), mean_from(trace, "sink_mass", first)
    offsets = trace["offset_mass"].transpose("layer", "head", "offset")
    before = offsets.to_numpy()[
        ..., list(offsets["offset"].to_numpy() if "offset" in offsets.coords else range(2)).index(1)
    ]
    before = before.astype(np.float64) / (num - 1)
    duplicate, induction = (mean_from(trace, name, 0) for name in ("match_mass", "match_mass_by_induction"))
    histogram = trace["distance_histogram"].transpose("layer", "head", "distance_bin")
    bins = histogram.sizes["distance_bin"]
    edges = histogram["distance_bin"].to_numpy() if "distance_bin" in histogram.coords else _edges(bins)
    said = () if trace.outcome is None else trace.outcome.response_tokens
    tokens = [*trace.sample.tokens, *said][:num]
    # Where a token stands for the first time no key can match it: 0 there is no head's doing.
    again = 1 - len(set(tokens)) / num
    by_chance = np.stack(by_distance_alone(histogram.to_numpy(), list(edges), tokens)) / max(again, 1 / num)
    duplicate, induction = duplicate / max(again, 1 / num), induction / max(again, 1 / num)
    scores = np.stack([near + sinks, near, before, duplicate, induction])
    seen = windows(trace)
    seen = np.full(scores.shape[1], num, np.int64) if seen is None else seen
    start = _starts(trace, recency, first)
    even = np.array([[_even(num, start, int(w), NUM_SINK, recent), _even(num, start, int(w), 0, recent)] for w in seen])
    previous = np.array([np.mean(1 / np.minimum(np.arange(1, num) + 1, w)) for w in seen]) * (seen > 1)
    flat = np.stack([even[:, 0], even[:, 1], previous])[..., None] * np.ones(scores.shape[2])
    chance = np.concatenate([flat, np.minimum(by_chance, 1.0)])
    apart = near / np.maximum(1 - sinks, 1e-6)
    lazy = None
    window = statistic_name("recent_mass", recent=(lazy_window, 64))
    if window in trace and len(trace.sample) > lazy_window + NUM_SINK:
        last = len(trace.sample) - 1
        lazy = (at_query(trace, window, last) + at_query(trace, "sink_mass", last)).mean(axis=-1)
    numbers = (scores, chance, apart) if lazy is None else (scores, chance, apart, lazy)
    if not all(np.isfinite(each).all() for each in numbers):
        return None
    # Sums of float32 may pass 1 in the eighth digit.
    scores = np.clip(scores, 0.0, 1.0)
    apart = np.minimum(apart, 1.0)
    return RoleReading(trace.sample.name, trace.unit, scores, chance, apart, lazy, _shapes(trace), _logit(trace))


def _shapes(trace: Trace) -> Floats | None:
    names = [f"sparse_shape_mass{end}" for end in SHAPES.values()]
    if any(name not in trace for name in names):
        return None
    return np.stack([trace[name].transpose("layer", "head").to_numpy().astype(np.float64) for name in names])


def _logit(trace: Trace) -> Floats | None:
    if "span_logit_all" not in trace:
        return None
    rows = trace["span_logit_all"].transpose("layer", "head", "row").to_numpy().astype(np.float64)
    there = np.isfinite(rows).all(axis=(0, 1))
    return rows[..., there].mean(axis=-1) if there.any() else None


def _starts(trace: Trace, name: str, first: int) -> int:
    """Return the first position whose query counts: of a pooled array that of a block."""
    _, start, _ = by_query(trace, name)
    return int(start[start >= first][0]) if (start >= first).any() else first


def _even(num: int, first: int, window: int, sinks: int, recent: int) -> float:
    """Return the mean share of keys that are sinks or recent, among those that queries from `first` on see."""
    position = np.arange(first, num)
    seen = np.minimum(position + 1, window)
    start = position + 1 - seen
    near = np.minimum(recent, seen)
    far = np.clip(sinks - start, 0, None)
    return float(np.mean(np.minimum(near + far, seen) / seen))


def _edges(bins: int) -> list[int]:
    return [0, *(1 << b for b in range(bins - 1))]

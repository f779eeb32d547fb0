"""How spread attention is: normalised entropy by position, and the largest probability by length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from probe import chart
from probe.analyses.measures.place_readings import MOST_NUMBERS, Floats, entropy_share, largest_near_end
from probe.analyses.measures.units_at import known_answers, units_at
from probe.errors import MissingStatistic
from probe.finding import Figure
from probe.storage.trace_store import Run, Trace
from probe.storage.unit_answer import UnitAnswer

MOST_PROMPTS: Final = 8
"""Prompts that are read at each length; heads differ far more than prompts do."""
MOST_LENGTHS: Final = 12
CLASSES: Final = 64
"""Classes of positions that a line has at most."""


def entropy_by_position(
    run: Run | Trace, condition: str, length: int, *, answers: Iterable[UnitAnswer] | None = None
) -> Figure:
    """Draw entropy over ln(i + 1) of one condition and length by query position i: mean and range of the heads.

    Raises MissingStatistic, saying what to capture, where `entropy` was not.
    """
    units = units_at(run, condition, length, ["entropy"], answers=answers, most=MOST_PROMPTS)
    if not units.traces:
        raise _missing(condition)
    edges = np.unique(np.geomspace(1, max(length, 2), CLASSES + 1).astype(int))
    sums: list[Floats] = []
    layers = (0, 0)
    for trace in units.traces:
        if sums and len(sums) * math.prod(trace.stored("entropy").shape) > MOST_NUMBERS:
            break
        spread = entropy_share(trace)
        layers = (spread.layers_read, spread.num_layers)
        which = np.searchsorted(edges, spread.position, side="right") - 1
        columns = [spread.values[:, which == i] for i in range(len(edges))]
        sums.append(np.stack([_mean(each) for each in columns], axis=1))
    heads = np.stack(sums).mean(0)
    known = np.isfinite(heads).any(0)
    low, middle, high = np.nanquantile(heads[:, known], [0.1, 0.5, 0.9], axis=0)
    x = edges[known].tolist()
    line = chart.line("median head", x, middle, hovertemplate="from token %{x:,} on: %{y:.3f}<extra></extra>")
    uniform = chart.line("uniform attention", x, np.ones(len(x)), color=chart.QUIET, dash="dash", mode="lines")
    return chart.figure(
        "entropy_by_position",
        f"How spread attention is, by position: {condition}, {length:,} tokens",
        "Entropy over ln(i + 1) of the query at position i (attention_dispersion's index, this toolkit's own): 1 is "
        f"uniform attention. Line: the median of the {len(heads):,} heads; area: from the 10th to the 90th in 100. "
        f"{len(sums)} of {units.there} prompts read." + _layers(layers),
        [*chart.band(x, low, high), line, uniform],
        {
            "xaxis": chart.axis("query position (log)", type="log"),
            "yaxis": chart.axis("normalised entropy", range=[-0.04, 1.06]),
        },
    )


def largest_by_length(
    run: Run | Trace,
    condition: str,
    lengths: Sequence[int] | None = None,
    *,
    answers: Iterable[UnitAnswer] | None = None,
) -> Figure:
    """Draw the largest probability of a row near the prompt's end by the prompt's length; raises as above."""
    known = known_answers(run, answers)
    there = sorted({each.length for each in known if each.condition == condition and each.captured})
    chosen = [at for at in there if lengths is None or at in lengths]
    if len(chosen) > MOST_LENGTHS:
        chosen = [chosen[round(i * (len(chosen) - 1) / (MOST_LENGTHS - 1))] for i in range(MOST_LENGTHS)]
    rows: dict[int, tuple[float, float, float, float]] = {}
    layers, read = (0, 0), 0
    for at in chosen:
        units = units_at(run, condition, at, ["max_probability"], answers=known, most=MOST_PROMPTS)
        if not units.traces:
            continue
        found = [largest_near_end(trace) for trace in units.traces]
        layers, read = (found[0].layers_read, found[0].num_layers), read + len(found)
        heads = np.mean([each.values.mean(-1) for each in found], axis=0)
        even = float(np.mean([(1 / (each.position + 1)).mean() for each in found]))
        rows[at] = (*np.quantile(heads, [0.1, 0.5, 0.9]).tolist(), even)
    if not rows:
        raise _missing(condition)
    low, middle, high, uniform = np.array(list(rows.values())).T
    x = list(rows)
    data = []
    for index, (name, values) in enumerate(
        (
            ("90th of 100 heads", high),
            ("median head", middle),
            ("10th of 100 heads", low),
            ("uniform attention", uniform),
        )
    ):
        data.append(
            chart.line(
                name,
                x,
                values,
                color=chart.QUIET if index == 3 else chart.SERIES[index],
                dash=chart.DASHES[index],
                symbol=chart.SYMBOLS[index],
                hovertemplate="%{x:,} tokens: %{y:.4f}<extra></extra>",
            )
        )
    return chart.figure(
        "largest_by_length",
        f"The largest probability of a row, by length: {condition}",
        "Mean over the last eighth of the queries before the question: 10th, 50th and 90th of 100 heads. Uniform "
        f"attention is the least there can be. {read} prompts read, {MOST_PROMPTS} a length at most." + _layers(layers),
        data,
        {
            "xaxis": chart.axis(
                "prompt length (tokens, log)", type="log", tickvals=x, ticktext=[f"{at:,}" for at in x]
            ),
            "yaxis": chart.axis("largest probability (log)", type="log"),
        },
    )


def _mean(columns: Floats) -> Floats:
    """Return the mean over columns of what is a number, `[head]`; NaN where nothing is."""
    there = np.isfinite(columns)
    total = np.where(there, columns, 0.0).sum(1)
    return np.asarray(np.divide(total, there.sum(1), out=np.full(len(columns), np.nan), where=there.any(1)))


def _missing(condition: str) -> MissingStatistic:
    return MissingStatistic(
        f"how spread attention is was not captured under {condition!r}: add `entropy` and `max_probability` to a "
        "casebook's capture; the casebook finding-and-answering does"
    )


def _layers(layers: tuple[int, int]) -> str:
    return f" {layers[0]} of {layers[1]} layers read." if layers[0] < layers[1] else ""

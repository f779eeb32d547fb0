"""How badly the model tells each token, by where in the prompt it stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from probe import chart
from probe.analyses.measures.place_readings import loss_by_class
from probe.analyses.measures.units_at import MOST_UNITS, known_answers, units_at
from probe.errors import MissingStatistic
from probe.finding import Figure
from probe.intervals import FEWEST_PROMPTS, mean_ends
from probe.storage.trace_store import Run, Trace
from probe.storage.unit_answer import UnitAnswer

MOST_LINES: Final = 6


def loss_by_position(
    run: Run | Trace,
    conditions: Sequence[str],
    lengths: Sequence[int] | None = None,
    *,
    answers: Iterable[UnitAnswer] | None = None,
) -> Figure:
    """Draw the loss of the prompt's tokens, a line for each condition and length: six, evenly chosen where more.

    Raises MissingStatistic, saying what to capture, where `loss` was not.
    """
    known = known_answers(run, answers)
    pairs = [
        (condition, at)
        for condition in conditions
        for at in sorted({each.length for each in known if each.condition == condition and each.captured})
        if lengths is None or at in lengths
    ]
    every = len(pairs)
    if every > MOST_LINES:
        pairs = [pairs[round(i * (every - 1) / (MOST_LINES - 1))] for i in range(MOST_LINES)]
    one_length, one_condition = len({at for _, at in pairs}) == 1, len({of for of, _ in pairs}) == 1
    data: list[chart.Trace] = []
    read = there = 0
    for index, (condition, length) in enumerate(pairs):
        units = units_at(run, condition, length, ["loss"], answers=known, most=max(8, MOST_UNITS // len(pairs)))
        if not units.traces:
            continue
        read, there = read + len(units.traces), there + units.there
        found = [loss_by_class(trace) for trace in units.traces]
        first = max((each for each, _ in found), key=len)
        values = np.full((len(found), len(first)), np.nan)
        for row, (_, losses) in zip(values, found, strict=True):
            row[: len(losses)] = losses
        enough = np.isfinite(values).all(0)
        if not enough.any():
            continue
        low, high = None, None
        if len(values) >= FEWEST_PROMPTS:
            low, high = mean_ends(values[:, enough], draws=500)
        name = f"{length:,} tokens" if one_condition else condition if one_length else f"{condition}, {length:,}"
        data.append(
            chart.line(
                name,
                first[enough] * 1.01 ** (index - (len(pairs) - 1) / 2),
                values[:, enough].mean(0),
                low,
                high,
                color=chart.SERIES[index],
                dash=chart.DASHES[index],
                symbol=chart.SYMBOLS[index],
                customdata=[f"{at:,}" for at in first[enough].tolist()],
                hovertemplate="from token %{customdata} on: %{y:.3f} nats<extra></extra>",
                showlegend=True,
            )
        )
    if not data:
        raise MissingStatistic(
            f"the loss of each token was not captured under {', '.join(conditions)}: add `loss` to a casebook's "
            "capture; the casebooks context-use and state-collapse do"
        )
    caption = (
        "Mean -log p of the prompt's tokens, in nats, in classes from 2^(k/2) up to 2^((k+1)/2), with 95 % intervals "
        f"over prompts (BCa bootstrap, from five on). {read} of {there} prompts read. Other tokens stand at each: "
        "what differs is not the position alone."
    )
    caption += f" {len(pairs)} of {every} lines are drawn." if len(pairs) < every else ""
    title = "Loss by position" + (f": {pairs[0][0]}" if one_condition else f", {pairs[0][1]:,} tokens")
    return chart.figure(
        "loss_by_position",
        title,
        caption,
        data,
        {
            "xaxis": chart.axis("token of the prompt (log)", type="log"),
            "yaxis": chart.axis("loss (nats per token)"),
        },
    )

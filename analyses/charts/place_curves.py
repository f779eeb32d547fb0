"""Right answers, or the answer's loss, by where in the prompt what answers the question stands: U-curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from probe import chart
from probe.analyses.measures.needle_cells import By, Cell, Places, needle_cells
from probe.errors import MissingStatistic
from probe.finding import Figure
from probe.storage.trace_store import Run
from probe.storage.unit_answer import UnitAnswer, answers_of

MOST_LINES: Final = 8


def place_curves(
    run: Run | Iterable[UnitAnswer],
    conditions: Sequence[str] = ("baseline",),
    lengths: Sequence[int] | None = None,
    *,
    by: By = "accuracy",
) -> Figure:
    """Draw a line for each condition and each length, or all lengths: eight lines, evenly chosen where there are more.

    Raises MissingStatistic where no answered sample says where its gold stands.
    """
    answers = answers_of(run)
    places = Places.of(answers)
    lines: list[tuple[str, int, list[Cell]]] = []
    for condition in conditions:
        cells = [each for each in needle_cells(answers, condition, by=by, places=places) if each.depth is not None]
        for length in sorted({each.length for each in cells}):
            if lengths is None or length in lengths:
                lines.append((condition, length, [each for each in cells if each.length == length]))
    if not lines:
        raise MissingStatistic(
            f"no answered sample of {', '.join(conditions)} says where what answers it stands. Workloads that do: "
            "needle, passkey, documents, key_values, needles with depths; or own_prompts with the fact `needle_depth`"
        )
    every = len(lines)
    if every > MOST_LINES:
        lines = [lines[round(i * (every - 1) / (MOST_LINES - 1))] for i in range(MOST_LINES)]
    depths = sorted({each.depth for _, _, cells in lines for each in cells if each.depth is not None})
    gap = float(min(np.diff(depths), default=1.0))
    one_length, one_condition = len({at for _, at, _ in lines}) == 1, len({of for of, _, _ in lines}) == 1
    data = []
    for index, (condition, length, cells) in enumerate(lines):
        name = f"{length:,} tokens" if one_condition else condition if one_length else f"{condition}, {length:,}"
        # A small shift keeps the bars of lines that agree apart.
        shift = 0.05 * gap * (index - (len(lines) - 1) / 2)
        known = [(each.depth + shift, each) for each in cells if each.depth is not None]
        low = [np.nan if each.interval is None else each.interval.low for _, each in known]
        high = [np.nan if each.interval is None else each.interval.high for _, each in known]
        data.append(
            chart.line(
                name,
                [x for x, _ in known],
                [np.nan if each.value is None else each.value for _, each in known],
                low,
                high,
                color=chart.SERIES[index],
                dash=chart.DASHES[index % len(chart.DASHES)],
                symbol=chart.SYMBOLS[index % len(chart.SYMBOLS)],
                customdata=[f"depth {each.depth:.2g}, {each.num_prompts} prompts" for _, each in known],
                hovertemplate="%{customdata}: "
                + ("%{y:.0%}" if by == "accuracy" else "%{y:.3f} nats")
                + "<extra></extra>",
                showlegend=True,
            )
        )
    title = "Right answers by place" if by == "accuracy" else "Loss of the right answer by place"
    if one_condition:
        title += f": {lines[0][0]}"
    if one_length:
        title += f", {lines[0][1]:,} tokens"
    what = "Share of prompts answered right" if by == "accuracy" else "Mean negative log-likelihood of the right answer"
    bars = "Clopper-Pearson" if by == "accuracy" else "bootstrap over prompts, from five on"
    caption = (
        f"{what}, by where the needle or gold document stands (0: first, 1: last), with 95 % intervals ({bars}). A U "
        "is high at both ends and low between."
    )
    caption += " Depths are rounded to tenths." if places.rounds_depths else ""
    caption += " Lengths are rounded to powers of two." if places.rounds_lengths else ""
    caption += f" {len(lines)} of {every} lines are drawn." if len(lines) < every else ""
    vertical = (
        chart.share_axis("right answers")
        if by == "accuracy"
        else chart.axis("answer loss (nats per token)", rangemode="tozero")
    )
    ticks = depths if len(depths) <= 11 else None
    return chart.figure(
        f"place_{by}",
        title,
        caption,
        data,
        {"xaxis": chart.axis("place (0: first, 1: last)", tickvals=ticks, tickformat=".2~f"), "yaxis": vertical},
    )

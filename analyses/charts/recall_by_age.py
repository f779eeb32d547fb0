"""Right answers by how long ago the answer was read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from probe import chart
from probe.analyses.measures.age_classes import age_classes
from probe.errors import MissingStatistic
from probe.finding import Figure
from probe.storage.trace_store import Run
from probe.storage.unit_answer import UnitAnswer, answers_of

MOST_LINES: Final = 6


def recall_by_age(
    run: Run | Iterable[UnitAnswer], condition: str = "baseline", *, trained: int | None = None
) -> Figure:
    """Draw a condition's share of right answers by the age of what is asked, a line a length; `trained` in tokens.

    Raises MissingStatistic where no answered sample says where its answer stands.
    """
    classes = age_classes(answers_of(run), condition)
    if not classes:
        raise MissingStatistic(
            f"no answered sample of the condition {condition!r} says where its answer stands (a span `needle_value`). "
            "Workloads that do: associative_recall, needle, passkey, key_values, documents"
        )
    lengths = sorted({each.length for each in classes})
    shown = lengths
    if len(lengths) > MOST_LINES:
        shown = [lengths[round(i * (len(lengths) - 1) / (MOST_LINES - 1))] for i in range(MOST_LINES)]
    data = []
    for index, length in enumerate(shown):
        here = [each for each in classes if each.length == length]
        data.append(
            chart.line(
                f"{length:,} tokens",
                # A little apart, so that bars do not cover each other.
                [each.first * 2**0.5 * 1.04 ** (index - (len(shown) - 1) / 2) for each in here],
                [each.share for each in here],
                [each.interval.low for each in here],
                [each.interval.high for each in here],
                color=chart.SERIES[index],
                dash=chart.DASHES[index],
                symbol=chart.SYMBOLS[index],
                customdata=[
                    f"{each.first:,} to {2 * each.first - 1:,} tokens old, {each.right}/{each.n}" for each in here
                ],
                hovertemplate="%{customdata} right: %{y:.0%}<extra></extra>",
            )
        )
    ages = sorted({each.first for each in classes})
    caption = (
        "Share of answers that are right, by how many tokens before the prompt's end the answer stands, in classes "
        "twice as old as the one before; a line a length, bars exact 95 % intervals (Clopper-Pearson)."
    )
    caption += f" Dashed: the training length, {trained:,} tokens." if trained else ""
    caption += f" {len(shown)} of {len(lengths)} lengths are drawn." if len(shown) < len(lengths) else ""
    return chart.figure(
        "recall_by_age",
        f"Right answers by age: {condition}",
        caption,
        data,
        {
            "xaxis": chart.axis(
                "age of the answer (tokens, log)", type="log", tickvals=ages, ticktext=[f"{at:,}" for at in ages]
            ),
            "yaxis": chart.share_axis("right answers"),
            "shapes": [chart.rule(x=float(trained))] if trained else [],
        },
    )

"""What differs between two conditions, of one run or of two, over the prompts that both read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import numpy as np

from probe import chart
from probe.analyses.measures.condition_effect import Quantity
from probe.analyses.measures.paired_answers import QUANTITIES, PairedAnswers, paired_answers
from probe.errors import MissingStatistic
from probe.finding import Figure
from probe.storage.trace_store import Run
from probe.storage.unit_answer import UnitAnswer

Of = Literal["length", "depth"]
MOST_PLACES: Final = 64
MOST_POINTS: Final = 2_000
_AXES: Final = {"length": "prompt length (tokens)", "depth": "place (0: first, 1: last)"}
_BETTER: Final = {"accuracy": "above 0 B is better", "answer_loss": "below 0 B is better"}


def difference_by_place(
    first: Run | Iterable[UnitAnswer],
    condition: str,
    second: Run | Iterable[UnitAnswer],
    other: str,
    *,
    quantity: Quantity = "accuracy",
    of: Of = "length",
) -> Figure:
    """Draw B less A at each length, or at each depth of the needle, paired by prompt, with 95 % intervals.

    A is `condition` of the first run, B `other` of the second. Raises MissingStatistic where no prompt has both.
    """
    return drawn_by_place(paired_answers(first, condition, second, other), quantity=quantity, of=of)


def drawn_by_place(paired: PairedAnswers, *, quantity: Quantity, of: Of) -> Figure:
    """Draw the same of pairs that were made already."""
    found = paired.by(quantity, of)
    name, unit = QUANTITIES[quantity]
    if not found:
        raise MissingStatistic(f"no prompt that both sides read has {name} and a {of}")
    places = sorted(found)[:MOST_PLACES]
    values = [found[at].difference for at in places]
    ends = [found[at].interval for at in places]
    line = chart.line(
        "B less A",
        [f"{at:,.0f}" if of == "length" else f"{at:g}" for at in places],
        values,
        [np.nan if end is None else end.low for end in ends],
        [np.nan if end is None else end.high for end in ends],
        customdata=[f"A {found[at].before:.4g}, B {found[at].value:.4g}, {found[at].n} prompts" for at in places],
        hovertemplate="%{x}: %{y:+.3g} " + unit + "<br>%{customdata}<extra></extra>",
        showlegend=False,
    )
    how = {"accuracy": "wider of Newcombe's and the exact one for pairs", "seconds": "BCa bootstrap over prompts"}
    caption = (
        f"{name[0].upper()}{name[1:]} of B less that of A over the prompts that both read, paired, with 95 % intervals "
        f"({how.get(quantity, 'BCa bootstrap over prompts')})"
    )
    caption += f"; {_BETTER[quantity]}." if quantity in _BETTER else "."
    caption += f" {len(places)} of {len(found)} are drawn." if len(places) < len(found) else ""
    return chart.figure(
        f"difference_by_{of}",
        f"{name[0].upper()}{name[1:]}, B less A, by {of}",
        caption,
        [{**line, "mode": "markers"}],
        {
            "xaxis": chart.axis(_AXES[of], type="category"),
            "yaxis": chart.axis(unit),
            "shapes": [chart.rule(y=0.0)],
        },
    )


def prompt_by_prompt(
    first: Run | Iterable[UnitAnswer],
    condition: str,
    second: Run | Iterable[UnitAnswer],
    other: str,
    *,
    quantity: Quantity = "answer_loss",
) -> Figure:
    """Draw every prompt that both sides read: A's number across, B's up; marks say which side answers right."""
    return drawn_prompts(paired_answers(first, condition, second, other), quantity=quantity)


def drawn_prompts(paired: PairedAnswers, *, quantity: Quantity) -> Figure:
    """Draw the same of pairs that were made already."""
    points = list(paired.values(quantity))
    name, unit = QUANTITIES[quantity]
    if not points:
        raise MissingStatistic(f"no prompt that both sides read has {name}")
    step = -(-len(points) // MOST_POINTS)
    groups: dict[str, list[tuple[str, float, float]]] = {kind: [] for kind in _KINDS}
    for pair, a, b in points[::step]:
        right = [[each.correct for each in side if each.correct is not None] for side in (pair.first, pair.second)]
        first_share, second_share = (float(np.mean(side)) if side else np.nan for side in right)
        groups[_kind(first_share, second_share)].append((pair.sample, a, b))
    data: list[chart.Trace] = []
    for index, (kind, some) in enumerate(groups.items()):
        if some:
            line = chart.line(
                f"{kind} ({len(some)})",
                [a for _, a, _ in some],
                [b for _, _, b in some],
                color=chart.SERIES[index],
                customdata=[chart.shown(sample) for sample, _, _ in some],
                hovertemplate="%{customdata}<br>A %{x:.4g}, B %{y:.4g}<extra></extra>",
                showlegend=True,
            )
            marker = {"color": chart.SERIES[index], "size": 7, "symbol": chart.SYMBOLS[index], "opacity": 0.75}
            data.append({**line, "mode": "markers", "marker": marker})
    ends = [min(min(a, b) for _, a, b in points), max(max(a, b) for _, a, b in points)]
    same = chart.line(
        "same", ends, ends, color=chart.QUIET, dash="dash", mode="lines", hoverinfo="skip", showlegend=False
    )
    caption = f"{name[0].upper()}{name[1:]} ({unit}) of each prompt: below the dashed line B's is smaller."
    caption += f" Each {step}th of {len(points):,} prompts is drawn." if step > 1 else ""
    return chart.figure(
        "prompt_by_prompt",
        f"{name[0].upper()}{name[1:]}, prompt by prompt",
        caption,
        [same, *data],
        {"height": 460, "xaxis": chart.axis(f"A ({unit})"), "yaxis": chart.axis(f"B ({unit})")},
    )


_KINDS: Final = ("both right", "only A right", "only B right", "neither right", "not judged, or draws differ")


def _kind(a: float, b: float) -> str:
    return {(1.0, 1.0): _KINDS[0], (1.0, 0.0): _KINDS[1], (0.0, 1.0): _KINDS[2], (0.0, 0.0): _KINDS[3]}.get(
        (a, b), _KINDS[4]
    )

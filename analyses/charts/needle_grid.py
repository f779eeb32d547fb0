"""The needle grid: right answers, or the answer's loss, by prompt length and by where the needle stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from probe import chart
from probe.analyses.measures.needle_cells import By, Cell, Place, Places, needle_cells
from probe.errors import MissingStatistic
from probe.finding import Figure, Interval
from probe.storage.trace_store import Run
from probe.storage.unit_answer import UnitAnswer, answers_of

NOTHING_AT_A_DEPTH = (
    "no answered sample of the condition {condition!r} says at which depth its needle stands. Workloads that fill this "
    "grid: needle, passkey, documents, key_values, needles with depths, padded_question, own_documents; or own_prompts "
    "with the fact `needle_depth`"
)


def needle_grid(
    run: Run | Iterable[UnitAnswer], condition: str = "baseline", *, by: By = "accuracy", marked: Place | None = None
) -> Figure:
    """Draw a condition's grid: `accuracy` is the share of right answers, `loss` the mean answer loss (nats per token).

    In each cell the number and its prompts, on hover the 95 % interval; `marked` is a (length, depth) to frame. Raises
    MissingStatistic where no sample has a depth.
    """
    answers = answers_of(run)
    places = Places.of(answers, [condition])
    cells = _placed(needle_cells(answers, condition, by=by, places=places), condition)
    values = _laid_out(cells, places, [cell.value for cell in cells])
    high = 1.0 if by == "accuracy" else max(float(np.nanmax(values)), 1e-6)
    scale = chart.SUCCESS if by == "accuracy" else chart.MASS
    said = [f"{_number(cell.value, by)}<br>n {cell.num_prompts}" for cell in cells]
    hover = [f"{_told(cell)}<br>{_interval(cell.interval, by)}" for cell in cells]
    return _figure(
        f"needle_{by}",
        f"{_NAMES[by]} by length and depth: {condition}",
        f"{_DEFINED[by]} In each cell the value and its number of prompts n; on hover its 95 % interval "
        f"({_EXACT[by]}{_BOOTSTRAP}).{_rounded(places)}",
        _heatmap(cells, places, values, said, hover, (0.0, high), scale, by),
        marked,
    )


def needle_difference(
    run: Run | Iterable[UnitAnswer],
    condition: str,
    against: str = "baseline",
    *,
    by: By = "accuracy",
    marked: Place | None = None,
) -> Figure:
    """Draw how far a condition lies above another in each cell, over the prompts that both have.

    In percentage points or in nats per token. Raises MissingStatistic where there is no such prompt with a depth.
    """
    answers = answers_of(run)
    places = Places.of(answers, [condition, against])
    cells = _placed(needle_cells(answers, condition, by=by, against=against, places=places), condition)
    cells = [cell for cell in cells if cell.difference is not None]
    if not cells:
        raise MissingStatistic(f"the conditions {condition!r} and {against!r} have no sample in common")
    values = _laid_out(cells, places, [cell.difference for cell in cells])
    most = 1.0 if by == "accuracy" else max(float(np.nanmax(np.abs(values))), 1e-6)
    # Blue is the better side of both: more right answers, less loss.
    colors = [color for _, color in chart.SUCCESS]
    scale = [[i / 4, color] for i, color in enumerate(colors if by == "accuracy" else colors[::-1])]
    said = [f"{_number(cell.difference, by, signed=True)}<br>n {cell.num_pairs}" for cell in cells]
    hover = [f"{_prompts(cell.num_pairs)} in both<br>{_interval(cell.difference_interval, by)}" for cell in cells]
    return _figure(
        f"needle_{by}_difference",
        f"{condition} less {against}",
        f"Difference in {_UNITS[by]} over the prompts that both conditions have, paired by sample; blue is better than "
        f"{against}, orange worse. On hover its 95 % interval ({_EXACT_PAIRS[by]}{_BOOTSTRAP}).{_rounded(places)}",
        _heatmap(cells, places, values, said, hover, (-most, most), scale, by),
        marked,
    )


def answers_by_length(
    run: Run | Iterable[UnitAnswer], conditions: Sequence[str] = ("baseline",), *, by: By = "accuracy"
) -> Figure:
    """Draw the same numbers by length alone, for samples that say no depth too: one line a condition, eight at most.

    Raises MissingStatistic where none of the conditions has an answered sample.
    """
    merged = [replace(each, depth=None) for each in answers_of(run)]
    places = Places.of(merged, conditions)
    data: list[chart.Trace] = []
    lengths = [f"{at:,}" for at in places.lengths]
    for i, condition in enumerate(conditions[: len(chart.SERIES)]):
        cells = needle_cells(merged, condition, by=by, places=places)
        if not cells:
            continue
        line = chart.line(
            condition,
            [f"{cell.length:,}" for cell in cells],
            [cell.value for cell in cells],
            [cell.value if cell.interval is None else cell.interval.low for cell in cells],
            [cell.value if cell.interval is None else cell.interval.high for cell in cells],
            color=chart.SERIES[i],
            dash=chart.DASHES[i % len(chart.DASHES)],
            symbol=chart.SYMBOLS[i % len(chart.SYMBOLS)],
            customdata=[f"{_told(cell)}<br>{_interval(cell.interval, by)}" for cell in cells],
            hovertemplate="%{x} tokens: %{y:.3g}<br>%{customdata}<extra></extra>",
        )
        data.append(line)
    if not data:
        raise MissingStatistic(f"no sample was answered under {', '.join(conditions)}")
    name = _NAMES[by]
    vertical = chart.share_axis(name) if by == "accuracy" else chart.axis(f"{name} (nats per token)")
    return chart.figure(
        f"{by}_by_length",
        f"{name} by length",
        f"{_DEFINED[by]} Bars: 95 % intervals ({_EXACT[by]}{_BOOTSTRAP}).{_rounded(places)}",
        data,
        {"xaxis": chart.axis("prompt length (tokens)", type="category", categoryarray=lengths), "yaxis": vertical},
    )


_NAMES = {"accuracy": "Right answers", "loss": "Answer loss", "text": "Loss of the text"}
_DEFINED = {
    "accuracy": "Share of samples answered right, by the workload's own rule.",
    "loss": "Mean negative log-likelihood of the right answer (teacher forced), in nats per token: lower is better.",
    "text": "Mean negative log-likelihood of the prompt's own tokens from the second on, in nats per token.",
}
_EXACT = {"accuracy": "Clopper-Pearson; where draws are averaged ", "loss": "", "text": ""}
_EXACT_PAIRS = {
    "accuracy": "the wider of Newcombe's for pairs and the exact one; where draws are averaged ",
    "loss": "",
    "text": "",
}
_BOOTSTRAP = "a bootstrap over prompts, from five on"
_UNITS = {"accuracy": "share of right answers", "loss": "nats per token", "text": "nats per token"}


def _placed(cells: list[Cell], condition: str) -> list[Cell]:
    found = [cell for cell in cells if cell.depth is not None]
    if not found:
        raise MissingStatistic(NOTHING_AT_A_DEPTH.format(condition=condition))
    return found


def _laid_out(cells: Sequence[Cell], places: Places, numbers: Sequence[float | None]) -> np.ndarray[Any, Any]:
    """Return the numbers as `[depth length]`, NaN where there is no cell."""
    grid = np.full((len(places.depths), len(places.lengths)), np.nan)
    for cell, number in zip(cells, numbers, strict=True):
        if cell.depth is not None and number is not None:
            grid[places.depths.index(cell.depth), places.lengths.index(cell.length)] = number
    return grid


def _heatmap(
    cells: Sequence[Cell],
    places: Places,
    values: np.ndarray[Any, Any],
    said: Sequence[str],
    hover: Sequence[str],
    ends: tuple[float, float],
    scale: list[list[Any]],
    by: By,
) -> chart.Trace:
    text = [["" for _ in places.lengths] for _ in places.depths]
    told = [["" for _ in places.lengths] for _ in places.depths]
    for cell, in_cell, on_hover in zip(cells, said, hover, strict=True):
        row, column = places.depths.index(cell.depth or 0.0), places.lengths.index(cell.length)
        text[row][column], told[row][column] = in_cell, on_hover
    trace = chart.heatmap(
        [str(at) for at in places.lengths],
        [f"{depth:g}" for depth in places.depths],
        values,
        unit=_UNITS[by],
        hover="%{x} tokens, depth %{y}<br>%{z:.3g} " + _UNITS[by] + "<br>%{customdata}<br>click: its samples",
        scale=scale,
        low=ends[0],
        high=ends[1],
        tickformat=".0%" if by == "accuracy" else "",
    )
    rows, columns = values.shape
    if rows > 12:
        text = [[words.replace("<br>", " · ") for words in row] for row in text]
    fits = columns <= (12 if rows <= 12 else 8)
    written = {"text": text, "texttemplate": "%{text}", "textfont": {"size": 11}} if fits else {}
    return {**trace, **written, "customdata": told}


def _figure(name: str, title: str, caption: str, trace: chart.Trace, marked: Place | None) -> Figure:
    lengths, depths = trace["x"], trace["y"]
    frame: list[dict[str, Any]] = []
    if marked is not None and marked[1] is not None:
        at = (str(marked[0]), f"{marked[1]:g}")
        if at[0] in lengths and at[1] in depths:
            x, y = lengths.index(at[0]), depths.index(at[1])
            corners = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
            # Dark within light: seen on every cell, and on a dark page.
            lines = ({"color": "#ffffff", "width": 5}, {"color": chart.INK, "width": 2})
            frame = [{"type": "rect", **corners, "line": line} for line in lines]
    bare = {"type": "category", "showgrid": False, "showline": False, "ticks": ""}
    layout = {
        "height": int(np.clip(190 + 44 * len(depths), 300, 700)),
        "shapes": frame,
        "xaxis": chart.axis(
            "prompt length (tokens)", tickvals=lengths, ticktext=[f"{int(at):,}" for at in lengths], **bare
        ),
        "yaxis": chart.axis("depth of the needle (0: first)", autorange="reversed", **bare),
    }
    return chart.figure(name, title, caption, [trace], layout)


def _number(value: float | None, by: By, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    if by == "accuracy":
        return f"{100 * value:+.0f}" if signed else f"{100 * value:.0f} %"
    return f"{value:+.2f}" if signed else f"{value:.2f}"


def _prompts(number: int) -> str:
    return f"{number} prompt{'' if number == 1 else 's'}"


def _told(cell: Cell) -> str:
    more = f" in {cell.num_units} units" if cell.num_units > cell.num_prompts else ""
    right = "" if cell.num_right is None else f", {cell.num_right} right"
    return f"{_prompts(cell.num_prompts)}{more}{right}"


def _interval(interval: Interval | None, by: By) -> str:
    if interval is None:
        return "no interval: too few prompts"
    low, high = interval.low, interval.high
    ends = f"{100 * low:.3g} to {100 * high:.3g} %" if by == "accuracy" else f"{low:.3g} to {high:.3g}"
    return f"{100 * interval.level:g} % interval {ends} ({interval.method})"


def _rounded(places: Places) -> str:
    said = " Lengths are rounded to powers of two." if places.rounds_lengths else ""
    return said + (" Depths are rounded to tenths." if places.rounds_depths else "")

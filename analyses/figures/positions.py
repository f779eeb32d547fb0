"""The figures of `position_bias`: the needle grid, and accuracy, loss and attention by depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from probe import chart
from probe.finding import Figure
from probe.intervals import clopper_pearson

_MOST_LINES = 6


@dataclass(frozen=True)
class Cell:
    """One length and depth: mean and interval's ends of each quantity, NaN where it was not measured."""

    length: int
    """Length in tokens; of cells that were merged, the longest."""
    depth: float
    num_prompts: int
    num_right: int
    accuracy: tuple[float, float, float]
    loss: tuple[float, float, float]
    attention: tuple[float, float, float]
    strongest: float
    name: str = ""
    """What the line is called, where that is not the length."""

    @property
    def line(self) -> str:
        """Name of the line that the cell belongs to."""
        return self.name or f"{self.length:,} tokens"


def listed(lengths: Sequence[int]) -> str:
    """Return lengths as a reader says them, e.g. `64, 128 and 256`; of more than four, how many and their ends."""
    texts = [f"{at:,}" for at in lengths]
    if len(texts) > 4:
        return f"{len(texts)} from {texts[0]} to {texts[-1]}"
    return " and ".join(part for part in (", ".join(texts[:-1]), texts[-1]) if part)


def position_figures(cells: list[Cell], chosen: Sequence[int], some_heads: bool) -> Iterator[Figure]:
    """Yield the figures; `chosen` are the lengths of the claim, drawn among the lines before others are."""
    if not cells:
        return
    yield _grid(cells)
    if len({cell.depth for cell in cells}) < 2:
        return
    every_length = sorted({cell.length for cell in cells})
    bars = "Bars: 95 % intervals"
    claimed = f" The claim pools the prompts of {listed(chosen)} tokens." if len(chosen) > 1 else ""
    yield _lines(
        "depth_accuracy",
        "Right answers by depth of the needle",
        f"Share of prompts answered right, by where the needle stands, one line a length. {bars} (Clopper-Pearson). "
        "Lengths at which all is right, or all wrong, share one line." + claimed,
        _merged(cells),
        every_length,
        chosen,
        lambda cell: cell.accuracy,
        chart.share_axis("answered right"),
        "%{y:.0%}",
    )
    if any(np.isfinite(cell.loss[0]) for cell in cells):
        yield _lines(
            "depth_loss",
            "Loss of the right answer by depth of the needle",
            f"Mean negative log-likelihood of the right answer's tokens, in nats per token. {bars} (bootstrap over "
            "prompts). It shows an effect where all answers are still right, or all wrong.",
            cells,
            every_length,
            chosen,
            lambda cell: cell.loss,
            chart.axis("answer loss (nats per token)", rangemode="tozero"),
            "%{y:.3f} nats",
        )
    if any(np.isfinite(cell.attention[0]) for cell in cells):
        which = "the chosen heads" if some_heads else "all heads"
        yield _lines(
            "depth_attention",
            "Attention to the needle by its depth",
            f"Share of attention that falls on the needle as the first answer token is produced, mean over {which}. "
            f"{bars} (bootstrap over prompts).",
            cells,
            every_length,
            chosen,
            lambda cell: cell.attention,
            chart.axis("attention to the needle", rangemode="tozero"),
            "%{y:.4f}",
        )


def _grid(cells: list[Cell]) -> Figure:
    lengths, depths = sorted({cell.length for cell in cells}), sorted({cell.depth for cell in cells})
    lengths, depths = lengths[: chart.MOST_CELLS], depths[: chart.MOST_CELLS]
    rate = np.full((len(depths), len(lengths)), np.nan)
    text = [[""] * len(lengths) for _ in depths]
    for cell in cells:
        if cell.length in lengths and cell.depth in depths:
            row, column = depths.index(cell.depth), lengths.index(cell.length)
            rate[row, column] = cell.accuracy[0]
            text[row][column] = f"{cell.num_right}/{cell.num_prompts}"
    data = chart.heatmap(
        [f"{at:,}" for at in lengths],
        [f"{at:.0%}" for at in depths],
        rate,
        unit="answered right",
        hover="%{x} tokens, needle at %{y}<br>%{z:.0%} right",
        text=text,
        scale=chart.SUCCESS,
        tickformat=".0%",
    )
    every = all(cell.num_right == cell.num_prompts for cell in cells)
    title = (
        f"Every answer is right up to {lengths[-1]:,} tokens"
        if every
        else "Right answers by prompt length and depth of the needle"
    )
    return chart.figure(
        "needle_grid",
        title,
        "Each cell: prompts answered right of those asked, by prompt length and by depth of the needle (0 % is the "
        "beginning of the text, 100 % right before the question).",
        [data],
        {
            "height": int(np.clip(170 + 40 * len(depths), 300, 760)),
            "xaxis": chart.axis("prompt length (tokens)", type="category", showgrid=False, ticks="", showline=False),
            "yaxis": chart.axis(
                "depth of the needle", type="category", autorange="reversed", showgrid=False, ticks="", showline=False
            ),
        },
    )


def _merged(cells: list[Cell]) -> list[Cell]:
    """Return the cells with lengths at which all is right (or all wrong) pooled into one line each: they coincide."""
    merged: list[Cell] = []
    same: dict[bool, list[int]] = {True: [], False: []}
    for at in sorted({cell.length for cell in cells}):
        rates = {cell.accuracy[0] for cell in cells if cell.length == at}
        if rates in ({0.0}, {1.0}):
            same[rates == {1.0}].append(at)
        else:
            merged += [cell for cell in cells if cell.length == at]
    for right, lengths in same.items():
        for place in sorted({cell.depth for cell in cells if cell.length in lengths}):
            here = [cell for cell in cells if cell.length in lengths and cell.depth == place]
            n = sum(cell.num_prompts for cell in here)
            exact = clopper_pearson(n if right else 0, n)
            if exact is not None:
                name = ", ".join(f"{at:,}" for at in lengths)
                rate = (float(right), exact.low, exact.high)
                pooled = replace(here[-1], length=lengths[-1], num_prompts=n, accuracy=rate, name=f"{name} tokens")
                merged.append(pooled)
    return merged


def _lines(
    name: str,
    title: str,
    caption: str,
    cells: list[Cell],
    every_length: list[int],
    chosen: Sequence[int],
    of: Callable[[Cell], tuple[float, float, float]],
    axis: dict[str, object],
    hover: str,
) -> Figure:
    lengths = sorted({cell.length for cell in cells if np.isfinite(of(cell)[0])})
    if len(lengths) > _MOST_LINES:
        first = [at for at in lengths if at in chosen] or lengths
        num = min(_MOST_LINES, len(first))
        caption += f" {num} of {len(lengths)} lengths are drawn."
        lengths = [first[round(i * (len(first) - 1) / max(num - 1, 1))] for i in range(num)]
    depths = sorted({cell.depth for cell in cells})
    # The same length has the same colour in every figure.
    order = {at: index for index, at in enumerate(every_length)}
    gap = min(np.diff(depths), default=1.0)
    data = []
    for index, at in enumerate(lengths):
        here = [cell for cell in cells if cell.length == at]
        # A small shift keeps the bars of lines that agree apart.
        shift = 0.06 * gap * (index - (len(lengths) - 1) / 2)
        value, low, high = np.array([of(cell) for cell in here]).T
        data.append(
            chart.line(
                here[0].line,
                [cell.depth + shift for cell in here],
                value,
                low,
                high,
                color=chart.SERIES[order[at] % len(chart.SERIES)],
                dash=chart.DASHES[order[at] % len(chart.DASHES)],
                symbol=chart.SYMBOLS[order[at] % len(chart.SYMBOLS)],
                hovertemplate=f"{here[0].line}: {hover}<extra></extra>",
            )
        )
    ticks = depths if len(depths) <= 11 else depths[:: -(-len(depths) // 11)]
    x = chart.axis(
        "depth of the needle (0 % = beginning)", tickvals=ticks, tickformat=".0%", range=_around(depths, gap)
    )
    return chart.figure(name, title, caption, data, {"xaxis": x, "yaxis": axis})


def _around(depths: list[float], gap: float) -> list[float]:
    return [depths[0] - 0.35 * gap, depths[-1] + 0.35 * gap]

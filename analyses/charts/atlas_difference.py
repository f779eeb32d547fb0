"""Layer by head: what is more in B than in A, and what is less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from probe import chart
from probe.analyses.measures.head_differences import HeadDifference, finding_difference, trace_difference
from probe.errors import MissingStatistic
from probe.finding import Figure

if TYPE_CHECKING:
    from probe.finding import Finding
    from probe.storage.trace_store import Trace

FRAME: Final = chart.SERIES[3]
"""Colour of the frames: on no end of the scale, and seen on white and on black."""
WRITTEN: Final = 32
"""Rows and columns up to which each cell says its sign."""


def atlas_difference(key: str, pairs: Sequence[tuple[Trace, Trace]]) -> Figure:
    """Draw how a statistic of each head (`entropy`, `sink_mass`, `span_mass.needle`, …) differs, B less A, over pairs.

    A pair is the same prompt's traces under A and under B. Raises as `trace_difference` does.
    """
    return drawn_atlas(trace_difference(key, pairs))


def finding_atlas(key: str, findings: dict[str, Finding], others: dict[str, Finding], heads: dict[int, int]) -> Figure:
    """Draw how a column of two runs' findings differs by head, B less A."""
    return drawn_atlas(finding_difference(key, findings, others, heads))


def drawn_atlas(found: HeadDifference) -> Figure:
    """Draw a difference that was made already."""
    values = found.difference[: chart.MOST_CELLS, : chart.MOST_CELLS]
    known = values[np.isfinite(values)]
    if not known.size:
        raise MissingStatistic(f"no head has {found.name} on both sides")
    most = float(np.abs(known).max()) or 1.0
    layers = found.layers[: len(values)]
    rows, columns = values.shape
    cells = chart.heatmap(
        [str(head) for head in range(columns)],
        [str(layer) for layer in layers],
        values,
        unit=f"B less A{f' ({found.unit})' if found.unit else ''}",
        hover="layer %{y}, head %{x}<br>B less A %{z:+.3g}<br>%{customdata}",
        scale=chart.SUCCESS,
        low=-most,
        high=most,
    )
    pairs = zip(found.first[:rows, :columns].tolist(), found.second[:rows, :columns].tolist(), strict=True)
    cells["customdata"] = [[f"A {a:.4g}, B {b:.4g}" for a, b in zip(*row, strict=True)] for row in pairs]
    if max(rows, columns) <= WRITTEN:
        short = max(rows, columns) > 16
        text = [[_sign(value, most, short=short) for value in row] for row in values.tolist()]
        cells |= {"text": text, "texttemplate": "%{text}", "textfont": {"size": 10}}
    frames = [
        {
            "type": "rect",
            "x0": head - 0.5,
            "x1": head + 0.5,
            "y0": row - 0.5,
            "y1": row + 0.5,
            "line": {"color": FRAME, "width": 2},
        }
        for row, head in found.told
        if row < rows and head < columns
    ][:512]
    caption = f"{found.words} B less A: blue is more in B, orange less, pale no difference."
    if found.num_pairs is not None:
        caption += f" Mean over {found.num_pairs} prompt{'s' if found.num_pairs > 1 else ''} read on both sides."
    if found.low is not None:
        caption += (
            " Framed: the head's 95 % interval over prompts does not hold 0 (BCa bootstrap); it knows nothing of how "
            "many heads there are."
        )
    every = max(1, -(-columns // 32))
    return chart.figure(
        "atlas_difference",
        f"{found.name[0].upper()}{found.name[1:]}, B less A",
        caption,
        [cells],
        {
            "height": int(np.clip(160 + 30 * rows, 280, 760)),
            "shapes": frames,
            "xaxis": chart.axis(
                "head", type="category", tickvals=[str(h) for h in range(0, columns, every)], showgrid=False, ticks=""
            ),
            "yaxis": chart.axis("layer", type="category", showgrid=False, ticks="", showline=False),
        },
    )


def _sign(value: float, most: float, *, short: bool) -> str:
    if not np.isfinite(value):
        return ""
    if abs(value) < 0.05 * most:
        return "0"
    return ("+" if value > 0 else "−") if short else f"{value:+.2g}".replace("-", "−")

"""From how many tokens on a head's state leaves its trained range, as `state_collapse` found it."""

from __future__ import annotations

from typing import Final

import numpy as np

from probe import chart
from probe.errors import MissingStatistic
from probe.finding import Figure, Finding

MOST_HEADS: Final = 256


def state_onset(finding: Finding, *, trained: int | None = None) -> Figure:
    """Draw each recurrent head's onset of collapse against the training length, `trained` tokens.

    Heads that never leave their range stand at the top as open marks. Raises MissingStatistic for a finding that holds
    no onset.
    """
    if "onset_tokens" not in finding.columns or not finding.table:
        raise MissingStatistic(f"the finding of {finding.analysis} holds no onset; state_collapse measures it")
    rows = finding.records()[:MOST_HEADS]
    names = [f"({row['layer']}, {row['state_head']})" for row in rows]
    onset = np.array([np.nan if row["onset_tokens"] is None else row["onset_tokens"] for row in rows], np.float64)
    explodes = np.array([bool(row["explodes"]) for row in rows])
    known = onset[np.isfinite(onset)]
    top = 1.3 * max([*known.tolist(), float(trained or 1)])
    least = min([*known.tolist(), float(trained or top)])
    data: list[chart.Trace] = []
    for name, which, color, symbol in (
        ("explodes", explodes & np.isfinite(onset), chart.WARN, "diamond"),
        ("leaves its range, not certain to explode", ~explodes & np.isfinite(onset), chart.ACCENT, "circle"),
        ("never leaves its range", ~np.isfinite(onset), chart.QUIET, "circle-open"),
    ):
        if which.any():
            at = np.flatnonzero(which)
            data.append(
                {
                    **chart.line(name, [names[i] for i in at], np.where(np.isfinite(onset), onset, top)[at]),
                    "mode": "markers",
                    "marker": {"color": color, "size": 9, "symbol": symbol},
                    "customdata": ["never" if not np.isfinite(onset[i]) else f"{onset[i]:,.0f} tokens" for i in at],
                    "hovertemplate": "head %{x}: %{customdata}<extra></extra>",
                }
            )
    threshold = finding.parameters.get("threshold", 2.0)
    caption = (
        f"Tokens from which on the variance of a head's state stays above {threshold:g} times the largest within the "
        "training length, median over texts. Heads are (layer, head)."
    )
    caption += f" Dashed: the training length, {trained:,} tokens." if trained else ""
    caption += f" {MOST_HEADS} of {len(finding.table)} heads are drawn." if len(finding.table) > MOST_HEADS else ""
    return chart.figure(
        "state_onset",
        "Onset of collapse by head",
        caption,
        data,
        {
            "xaxis": chart.axis("head", type="category", categoryorder="array", categoryarray=names),
            "yaxis": chart.axis("tokens read (log)", type="log", range=np.log10([0.7 * least, 1.2 * top]).tolist()),
            "shapes": [chart.rule(y=float(trained))] if trained else [],
        },
    )

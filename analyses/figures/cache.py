"""The figures of `kv_cache`: attention retained by budget, the needle's, and heads that first and last tokens serve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probe import chart
from probe.analyses.measures.cache_policies import POLICIES
from probe.finding import Figure
from probe.intervals import mean_ends

Floats = NDArray[np.float64]


def cache_figures(
    retained: Floats, rows: Sequence[tuple[Any, ...]], streaming: Floats, needle: Floats, budgets: Sequence[float],
    at: int, seed: int,
) -> Iterator[Figure]:  # fmt: skip
    """Yield the figures for retained attention `[prompt policy budget]`, the table, and two of heads `[layer head]`:
    what StreamingLLM retains, and what SnapKV keeps of the attention on the needle (NaN where a head has none).
    """
    ends = mean_ends(retained, bounds=(0.0, 1.0), seed=seed) if len(retained) > 1 else None
    yield chart.figure(
        "cache_retained",
        "What each way of cutting the cache keeps of the attention to come",
        f"Attention of the answer's queries that goes to tokens that are kept, over {len(retained)} prompts, with the "
        "95 % interval over prompts. Dashed grey: random eviction at the same budget.",
        [
            chart.line(
                policy, budgets, retained[:, p].mean(axis=0),
                *(() if ends is None else (ends[0][p], ends[1][p])), **_style(p),
                hovertemplate="%{x:.0%} of the tokens: %{y:.1%}<extra>" + policy + "</extra>",
            )
            for p, policy in enumerate(POLICIES)
        ],
        _layout("attention retained"),
    )  # fmt: skip
    if any(row[8] is not None for row in rows):
        data = []
        for p, policy in enumerate(POLICIES):
            own = [row for row in rows if row[0] == policy]
            columns = [np.array([np.nan if row[i] is None else row[i] for row in own], np.float64) for i in (8, 9, 10)]
            data.append(
                chart.line(
                    policy, budgets, *columns, **_style(p),
                    hovertemplate="%{x:.0%} of the tokens: %{y:.1%}<extra>" + policy + "</extra>",
                )
            )  # fmt: skip
        yield chart.figure(
            "cache_needle",
            "What the needle loses",
            "Of the answer's queries' attention on the needle, all heads together, the share on tokens that are kept, "
            "with the 95 % interval over prompts. SnapKV has seen the question.",
            data,
            _layout("needle's attention kept"),
        )
    data, layout = chart.atlas(streaming, np.ones(streaming.shape, bool), unit="retained")
    yield chart.figure(
        "cache_heads",
        "Which heads the first and the last tokens would serve",
        f"Attention that StreamingLLM's cut retains in each head at {100 * budgets[at]:g} % of the tokens, layer 0 at "
        "the bottom.",
        data,
        layout,
    )
    if np.isfinite(needle).any():
        data, layout = chart.atlas(np.nan_to_num(needle), np.isfinite(needle), unit="needle's attention kept")
        yield chart.figure(
            "cache_needle_heads",
            "Which heads still see the needle",
            f"Of each head's attention on the needle, the share on tokens that SnapKV's cut keeps at "
            f"{100 * budgets[at]:g} % of the tokens, layer 0 at the bottom. SnapKV has seen the question.",
            data,
            layout,
        )


def _style(p: int) -> dict[str, Any]:
    last = p == len(POLICIES) - 1
    return {
        "color": chart.QUIET if last else chart.SERIES[p],
        "dash": "dash" if last else chart.DASHES[p],
        "symbol": chart.SYMBOLS[p],
    }


def _layout(title: str) -> dict[str, Any]:
    return {
        "xaxis": chart.axis("share of the prompt's tokens that is kept", tickformat=".0%"),
        "yaxis": chart.share_axis(title),
    }

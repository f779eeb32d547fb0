"""The figures of `generation_drift`: constraints kept by item, and attention to the prompt by decoded token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from probe import chart
from probe.analyses.measures.output_growth import Grown, sees_the_prompt
from probe.finding import Figure
from probe.intervals import cluster_bootstrap

_MOST_POINTS = 200


def drift_figures(seen: Sequence[Grown], without: Sequence[Grown], seed: int) -> Iterator[Figure]:
    """Yield the figures; none where nothing was decoded."""
    if not seen:
        return
    data = []
    for index, (name, some) in enumerate((("with the text", seen), ("text left out", without))):
        points = [(item, *point) for item in _items(some) if (point := _kept(some, item, seed)) is not None]
        if points:
            item, value, low, high = (list(column) for column in zip(*points, strict=True))
            data.append(
                chart.line(
                    name,
                    np.add(item, 0.08 * index),
                    value,
                    low,
                    high,
                    color=(chart.ACCENT, chart.QUIET)[index],
                    dash=chart.DASHES[index],
                    symbol=chart.SYMBOLS[index],
                    hovertemplate="item %{x:.0f}: %{y:.0%} kept<extra></extra>",
                )
            )
    yield chart.figure(
        "constraints_kept",
        "Constraints kept, by item of the answer",
        "Share of each item's constraints whose phrase the response holds, with 95 % intervals over prompts; beside "
        "it the same where the text that says what to write was left out. The first item may be begun in the prompt.",
        data,
        {"xaxis": chart.axis("item of the answer"), "yaxis": chart.share_axis("constraints kept")},
    )
    which = sees_the_prompt(seen)
    known = [each for each in seen if each.prompt_share is not None]
    if which is None or not which.any() or not known:
        return
    steps = min(len(each.prompt_share) for each in known if each.prompt_share is not None)
    if steps < 2:
        return
    curves = np.stack(
        [np.nanmean(e.prompt_share[:steps][:, which], axis=1) for e in known if e.prompt_share is not None]
    )
    uniform = np.stack([each.uniform()[:steps] for each in known])
    at = np.unique(np.linspace(0, steps - 1, _MOST_POINTS).round().astype(int))
    yield chart.figure(
        "attention_to_the_prompt",
        "Attention to the prompt as the output grows",
        "Mean over prompts and over heads that still see the prompt, at each decoded token; the rest is on the output. "
        "Uniform attention loses to the output no more than its share of the tokens.",
        [
            _line("attention to the prompt", at, curves.mean(axis=0)[at], 0),
            _line("uniform attention", at, uniform.mean(axis=0)[at], 1),
        ],
        {"xaxis": chart.axis("decoded token"), "yaxis": chart.share_axis("share of attention")},
    )


def _items(some: Sequence[Grown]) -> range:
    return range(1, max((each.num_items for each in some), default=0) + 1)


def _kept(some: Sequence[Grown], item: int, seed: int) -> tuple[float, float, float] | None:
    known = [(rate, each.prompt) for each in some if (rate := each.rate(item, item)) is not None]
    if not known:
        return None
    values, prompts = [rate for rate, _ in known], [prompt for _, prompt in known]
    ends = cluster_bootstrap(values, prompts, bounds=(0.0, 1.0), seed=seed)
    value = float(np.mean(values))
    return (value, ends.low, ends.high) if ends is not None else (value, value, value)


def _line(name: str, x: np.ndarray, y: np.ndarray, index: int) -> chart.Trace:
    trace = chart.line(
        name,
        x,
        y,
        color=(chart.ACCENT, chart.QUIET)[index],
        dash=chart.DASHES[index],
        hovertemplate="token %{x}: %{y:.3f}<extra></extra>",
    )
    return {**trace, "mode": "lines"}

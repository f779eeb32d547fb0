"""The figures of `attention_dispersion`: largest probability by length, normalised entropy by position, an atlas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from probe import chart
from probe.analyses.measures.dispersion import Floats, Spread
from probe.finding import Figure

_NAMES = ("heads that disperse", "other heads", "retrieval heads at the answer")


def dispersion_figures(
    seen: Sequence[Spread],
    found: NDArray[np.bool_],
    retrieves: NDArray[np.bool_],
    slope: Floats,
    exists: NDArray[np.bool_],
) -> Iterator[Figure]:
    """Yield the figures of the prompts that test; heads are `[layer head]`."""
    lengths = sorted({each.length for each in seen})
    groups = {_NAMES[0]: found, _NAMES[1]: exists & ~found}
    data = []
    for index, (name, which) in enumerate(groups.items()):
        if which.any():
            data.append(_line(index, name, lengths, [_mean(seen, "max_probability", which, at) for at in lengths]))
    if (retrieves & exists).any():
        at_answer = [[e.at_answer for e in seen if e.length == at and e.at_answer is not None] for at in lengths]
        if all(at_answer):
            values = [float(np.mean([each[retrieves & exists].mean() for each in here])) for here in at_answer]
            data.append(_line(2, _NAMES[2], lengths, values))
    uniform = [float(np.mean([each.uniform for each in seen if each.length == at])) for at in lengths]
    data.append(_line(3, "uniform attention", lengths, uniform))
    ticks = {"type": "log", "tickvals": lengths, "ticktext": [f"{at:,}" for at in lengths]}
    yield chart.figure(
        "max_probability_by_length",
        "The largest probability of a row, by length",
        "Mean over heads and over the last eighth of the queries before the question, on the prompts that did not "
        "choose the heads; retrieval heads at the steps of the answer. Uniform attention is the least there can be.",
        data,
        {"xaxis": chart.axis("prompt length (tokens)", **ticks), "yaxis": chart.share_axis("largest probability")},
    )
    longest = [each for each in seen if each.length == lengths[-1]]
    classes = sorted(set.intersection(*(set(each.by_position) for each in longest)))
    data = [
        _line(
            index,
            name,
            classes,
            [float(np.mean([each.by_position[low][which].mean() for each in longest])) for low in classes],
        )
        for index, (name, which) in enumerate(groups.items())
        if which.any()
    ]
    data.append(_line(3, "uniform attention", classes, [1.0] * len(classes)))
    yield chart.figure(
        "normalised_entropy_by_position",
        f"Normalised entropy by position, in prompts of {lengths[-1]:,} tokens",
        "Entropy over ln(i + 1), this toolkit's dispersion index: mean over queries from this position up to twice it. "
        "A head that spreads over a fixed number of keys falls; one that flattens rises towards 1.",
        data,
        {
            "xaxis": chart.axis("query position (beginning of the class)", type="log"),
            "yaxis": chart.axis("normalised entropy", range=[-0.04, 1.06]),
        },
    )
    marked = [(int(layer), int(head)) for layer, head in np.argwhere(found)]
    atlas, layout = chart.atlas(np.maximum(-slope, 0), exists, unit="fall per doubling", high=0.25, marked=marked)
    yield chart.figure(
        "dispersion_atlas",
        "Which heads lose their peak as the text grows",
        "Fall of the largest probability for each doubling of the length, over all prompts; 0 where it rises. Framed: "
        "found to disperse.",
        atlas,
        layout,
    )


def _mean(seen: Sequence[Spread], field: str, which: NDArray[np.bool_], length: int) -> float:
    return float(np.mean([getattr(each, field)[which].mean() for each in seen if each.length == length]))


def _line(index: int, name: str, x: Sequence[int], y: Sequence[float]) -> chart.Trace:
    return chart.line(
        name,
        x,
        y,
        color=chart.QUIET if name.startswith("uniform") else chart.SERIES[index],
        dash=chart.DASHES[index],
        symbol=chart.SYMBOLS[index],
        hovertemplate="%{x:,}: %{y:.3f}<extra></extra>",
    )

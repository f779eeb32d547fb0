"""The figures of `document_attention`: attention by place at fixed relevance, and with the gold among the documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from probe import chart
from probe.analyses.measures.attention_by_document import Documents
from probe.analyses.measures.attention_profile import AttentionProfile
from probe.analyses.measures.gold_recall import SCORES, recalls_by_place
from probe.finding import Figure
from probe.intervals import cluster_bootstrap

_MOST_PLACES = 100


def attention_figures(
    profiles: Sequence[AttentionProfile], asked: Sequence[Documents], dummies: Sequence[Documents]
) -> Iterator[Figure]:
    """Yield the figures; nothing where no profile could be made."""
    if not profiles:
        return
    yield _relative(profiles)
    for at in sorted({each.length for each in asked})[-1:]:
        yield from _absolute([each for each in asked if each.length == at and not each.turned], dummies, at)
    recall = recalls_by_place(asked, dummies)
    if recall:
        yield _recall(recall)


def _style(index: int) -> dict[str, str]:
    return {
        "color": chart.SERIES[index % len(chart.SERIES)],
        "dash": chart.DASHES[index % len(chart.DASHES)],
        "symbol": chart.SYMBOLS[index % len(chart.SYMBOLS)],
    }


def _relative(profiles: Sequence[AttentionProfile]) -> Figure:
    data = []
    for index, profile in enumerate(profiles):
        step = -(-len(profile.by_place) // _MOST_PLACES)
        shown = profile.by_place[::step]
        data.append(
            chart.line(
                profile.what,
                [place for place, _ in shown],
                [value for _, value in shown],
                **_style(index),
                hovertemplate="place %{x:.2f}: %{y:.2f} of the mean<extra></extra>",
            )
        )
    return chart.figure(
        "attention_by_place",
        "Attention by place at fixed relevance",
        "Attention per token, relative to the mean over places, of documents that say as much about the question as "
        "each other. Where a document stands would make no difference along the dashed line.",
        data,
        {
            "xaxis": chart.axis("place of the document (0: first, 1: last)"),
            "yaxis": chart.axis("attention, relative to the mean", rangemode="tozero"),
            "shapes": [chart.rule(y=1)],
        },
    )


def _absolute(asked: Sequence[Documents], dummies: Sequence[Documents], length: int) -> Iterator[Figure]:
    groups: dict[str, dict[float, list[tuple[str, float]]]] = {"the gold": {}, "other documents": {}, "dummies": {}}
    for each in (*asked, *(d for d in dummies if d.length == length)):
        for index, place in enumerate(each.places.round(4).tolist()):
            value = float(each.attention[index])
            if not np.isfinite(value):
                continue
            gold = "the gold" if index == each.gold else "other documents"
            kind = "dummies" if each.given == "all_dummies" else gold
            groups[kind].setdefault(place, []).append((each.prompt, value))
    data = []
    for index, (name, by_place) in enumerate(groups.items()):
        places = sorted(by_place)[:: -(-len(by_place) // _MOST_PLACES) or 1]
        known = [
            cluster_bootstrap([v for _, v in by_place[place]], [p for p, _ in by_place[place]], draws=500)
            for place in places
        ]
        means = [float(np.mean([v for _, v in by_place[place]])) for place in places]
        if places:
            data.append(
                chart.line(
                    name,
                    places,
                    means,
                    [m if k is None else k.low for m, k in zip(means, known, strict=True)],
                    [m if k is None else k.high for m, k in zip(means, known, strict=True)],
                    **_style(index),
                    hovertemplate="place %{x:.2f}: %{y:.2e}<extra></extra>",
                )
            )
    if data:
        yield chart.figure(
            "document_attention",
            f"Attention to documents at {length:,} tokens",
            "Attention per token from the row that produces the first answer token, mean over heads and prompts, with "
            "95 % intervals (BCa over prompts): gold, documents beside it, and dummies in a prompt of their own.",
            data,
            {
                "xaxis": chart.axis("place of the document (0: first, 1: last)"),
                "yaxis": chart.axis("attention per token (log)", type="log"),
            },
        )


def _recall(recall: dict[tuple[int, float], tuple[float, ...]]) -> Figure:
    longest = max(at for at, _ in recall)
    places = sorted(place for at, place in recall if at == longest)
    data = [
        chart.line(
            {"raw": "as it is", "subtracted": "less the dummy's", "divided": "divided by the dummy's"}[name],
            places,
            [recall[longest, place][index] for place in places],
            **_style(index),
            hovertemplate="gold at %{x:.2f}: %{y:.0%}<extra></extra>",
        )
        for index, name in enumerate(SCORES)
    ]
    return chart.figure(
        "gold_by_attention",
        f"Whether the gold has the most attention, at {longest:,} tokens",
        "Share of prompts in which the gold document has the most attention per token (Recall@1), by its place: as it "
        "is, and with the bias of the place taken off by what dummies get there.",
        data,
        {
            "xaxis": chart.axis("place of the gold document (0: first, 1: last)"),
            "yaxis": chart.share_axis("gold ahead of every other document"),
        },
    )

"""The figures of `retrieval_heads`: atlas of scores, and how many heads retrieve by threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from probe import chart
from probe.analyses.measures.head_scores import HeadScores
from probe.analyses.measures.rope_signature import RopeSignature
from probe.finding import Figure
from probe.intervals import percentiles

Floats = NDArray[np.float64]
_THRESHOLDS = np.round(np.arange(0.02, 1.0, 0.02), 2)


def atlas(heads: HeadScores, threshold: float) -> Figure:
    """Return the score of every head, those above the threshold framed."""
    few = f"{len(heads.above)} of {heads.num_heads}" if heads.above else f"None of {heads.num_heads}"
    data, layout = chart.atlas(
        heads.mean,
        heads.exists,
        unit="copying score",
        marked=heads.above,
        high=max(1.0, float(heads.mean.max())),
    )
    return chart.figure(
        "retrieval_atlas",
        f"{few} heads copy the answer from where it stands",
        "Mean copying score of each query head: the share of the answer's tokens that stood under the head's largest "
        f"probability when they were produced, over {heads.num_prompts} prompts answered right. Framed: above "
        f"{threshold:g}.",
        data,
        layout,
    )


def curve(heads: HeadScores, threshold: float) -> Figure:
    """Return how many heads score above every threshold, beside the control."""
    thresholds = np.unique(np.append(_THRESHOLDS, threshold))

    def above(scores: Floats) -> Floats:
        ordered = np.sort(scores, axis=-1)
        counts = [np.asarray(ordered.shape[-1] - np.searchsorted(row, thresholds, side="right")) for row in ordered]
        return np.asarray(np.asarray(counts) / ordered.shape[-1], np.float64)

    hover = {"mode": "lines", "hovertemplate": "above %{x:.2f}: %{y:.1%} of heads<extra></extra>"}
    share = above(heads.mean[heads.exists][None])[0]
    data = chart.band(thresholds, *percentiles(above(heads.drawn))) if heads.num_prompts > 1 else []
    data.append(chart.line("score", thresholds, share, **hover))
    if np.isfinite(heads.null).all():
        null = above(heads.null[heads.exists][None])[0]
        name = "control: each step given another step's token"
        data.append(chart.line(name, thresholds, null, color=chart.QUIET, dash="dash", **hover))
    top = max(0.02, 1.15 * float(share.max()))
    return chart.figure(
        "retrieval_thresholds",
        "How many heads retrieve, whatever the threshold",
        "Share of query heads whose mean score is above each threshold, with the 95 % interval over prompts. Upright: "
        f"the threshold in use, {threshold:g}. Where the line is flat, the count does not hang on the threshold.",
        data,
        {
            "xaxis": chart.axis("threshold on the copying score", range=[0, 1]),
            "yaxis": chart.axis("share of heads", tickformat=".1~%", range=[-0.02 * top, top]),
            "shapes": [chart.rule(x=threshold)],
        },
    )


def pairs(signature: RopeSignature) -> Figure:
    """Return the share of each rotary pair in the logits of the heads that retrieve and of the others."""
    order = np.arange(len(signature.chosen))
    data = [
        chart.line("heads that retrieve", order, signature.chosen, color=chart.ACCENT, symbol="circle"),
        chart.line("other heads of these layers", order, signature.others, color=chart.QUIET, symbol="square"),
    ]
    layout = {
        "xaxis": chart.axis("rotary pair, from the fastest to the slowest"),
        "yaxis": chart.axis("share of the logit's parts", tickformat=".0%", rangemode="tozero"),
    }
    shapes = []
    if signature.slow is not None and signature.slow.any() and not signature.slow.all():
        shapes = [chart.rule(x=float(np.argmax(signature.slow)) - 0.5)]
    return chart.figure(
        "retrieval_rope_pairs",
        "Which rotary pairs make the logits of the heads that retrieve",
        "Share of each rotary pair in the absolute parts of the logits, over drawn pairs of tokens 64 or more apart "
        f"(this toolkit's own), over {len(signature.by_prompt)} prompts."
        + (" Right of the upright line a pair turns slower than training is long." if shapes else ""),
        data,
        {**layout, "shapes": shapes} if shapes else layout,
    )

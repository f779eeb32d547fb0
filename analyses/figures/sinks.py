"""The figures of `attention_sinks`: atlas, curve over thresholds, attention by position, value norm by layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from probe import chart
from probe.finding import Figure
from probe.intervals import mean_ends

Floats = NDArray[np.float64]
_NUM_SINK = 4
_EPSILONS = np.round(np.arange(0.02, 1.0, 0.02), 2)


def uniform_importance(horizon: int, window: int | None = None) -> Floats:
    """Return each key's importance under uniform causal attention, `[key]`.

    Query i sees min(i + 1, window) keys, and gives each the same; a key's mean is over all queries from itself on,
    those that the window keeps from it among them.
    """
    window = horizon if window is None else min(window, horizon)
    given = 1 / np.minimum(np.arange(1, horizon + 1), window)
    mass = [given[key : key + window].sum() for key in range(horizon)]
    return np.asarray(mass / (horizon - np.arange(horizon)), np.float64)


def sink_figures(
    alpha: Floats, uniform: Floats, drain: Floats | None, epsilon: float, horizon: int, seed: int
) -> Iterator[Figure]:
    """Yield the figures for importances `[prompt layer head key]`, uniform ones `[layer key]`, and value norms' ratios.

    Those are `[prompt layer]`.
    """
    mean = alpha.mean(axis=0)
    above = [(int(a), int(b)) for a, b in np.argwhere(mean[..., 0] > epsilon)]
    data, layout = chart.atlas(
        mean[..., 0],
        np.ones(mean.shape[:2], bool),
        unit="attention",
        marked=above,
    )
    yield chart.figure(
        "sink_atlas",
        f"{len(above) or 'None'} of {mean[..., 0].size} heads hold a sink on the first token",
        f"Mean attention of each head on the first token, over the first {horizon} queries of {len(alpha)} prompts. "
        f"Framed: above {epsilon:g}.",
        data,
        layout,
    )
    yield _curve(alpha, uniform, epsilon, seed)
    yield _positions(mean, uniform, horizon, len(alpha))
    if drain is not None:
        yield _drain(drain, seed)


def _curve(alpha: Floats, uniform: Floats, epsilon: float, seed: int) -> Figure:
    epsilons = np.unique(np.append(_EPSILONS, epsilon))
    hover = {"mode": "lines", "hovertemplate": "above %{x:.2f}: %{y:.1%} of heads<extra></extra>"}
    data: list[chart.Trace] = []
    for name, values, color, dash in (
        ("first token", alpha[..., 0], chart.ACCENT, "solid"),
        (f"any token from the {_NUM_SINK + 1}th on", alpha[..., _NUM_SINK:].max(axis=-1), chart.WARN, "dot"),
    ):
        by_prompt = np.stack([(values > e).mean(axis=(1, 2)) for e in epsilons], axis=-1)
        if len(alpha) > 1:
            data += chart.band(epsilons, *mean_ends(by_prompt, seed=seed), color=color)
        data.append(chart.line(name, epsilons, by_prompt.mean(axis=0), color=color, dash=dash, **hover))
    flat = (uniform[:, :1] > epsilons).mean(axis=0)
    data.append(chart.line("control: uniform attention", epsilons, flat, color=chart.QUIET, dash="dash", **hover))
    return chart.figure(
        "sink_thresholds",
        "How many heads hold a sink, by threshold",
        "Share of prompts, layers and heads in which a token takes more than ε of the attention, with the 95 % "
        f"interval over prompts. Upright: the ε in use, {epsilon:g}.",
        data,
        {
            "xaxis": chart.axis("ε: least share of attention that makes a sink", range=[0, 1]),
            "yaxis": chart.share_axis("share of heads"),
            "shapes": [chart.rule(x=epsilon)],
        },
    )


def _positions(mean: Floats, uniform: Floats, horizon: int, num_prompts: int) -> Figure:
    positions = np.arange(mean.shape[-1])
    flat = mean.reshape(-1, mean.shape[-1])
    hover = {"hovertemplate": "token %{x}: %{y:.3f}<extra></extra>"}
    strongest = int(flat[:, 0].argmax())
    layer, head = divmod(strongest, mean.shape[1])
    data = [
        chart.line("mean over heads", positions, flat.mean(axis=0), **hover),
        chart.line(f"head ({layer}, {head})", positions, flat[strongest], color=chart.WARN, symbol="diamond", **hover),
        chart.line(
            "uniform attention",
            positions,
            uniform.mean(axis=0)[: len(positions)],
            color=chart.QUIET,
            dash="dash",
            mode="lines",
            **hover,
        ),
    ]
    return chart.figure(
        "sink_positions",
        "Which of the first tokens receive attention",
        f"Mean probability that a token receives from the queries from itself to the {horizon}th, over {num_prompts} "
        "prompts: over all heads, and in the head that gives the first token most. Even "
        "uniform attention favours early tokens, whose first queries see few others: compare with the dashed line, the "
        "mean over layers.",
        data,
        {"xaxis": chart.axis("position of the token"), "yaxis": chart.axis("attention received", rangemode="tozero")},
    )


def _drain(drain: Floats, seed: int) -> Figure:
    layers = np.arange(drain.shape[1])
    ends = mean_ends(drain, seed=seed) if len(drain) > 1 else (None, None)
    data = [
        chart.line(
            "first token",
            layers,
            drain.mean(axis=0),
            *ends,
            hovertemplate="layer %{x}: %{y:.2f}<extra></extra>",
        )
    ]
    return chart.figure(
        "sink_value_norm",
        "How much the first token's value carries",
        "Norm of the first token's value over the median of the others', mean over key-value heads, with the 95 % "
        "interval over prompts. A sink whose value is drained lies well below the dashed line at 1 (this "
        "toolkit's own ratio).",
        data,
        {
            "xaxis": chart.axis("layer", dtick=max(1, drain.shape[1] // 16)),
            "yaxis": chart.axis("value norm, first over median", rangemode="tozero"),
            "shapes": [chart.rule(y=1.0)],
        },
    )

"""The figures of `head_roles`: an atlas of roles, scores against chance, lazy layers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from probe import chart
from probe.analyses.measures.role_reading import ROLES
from probe.finding import Figure
from probe.intervals import mean_ends

Floats = NDArray[np.float64]
_LETTERS = ("S", "R", "P", "D", "I")
_MOST_SHOWN = 400
_PUBLISHED = (0.65, 0.9)


def role_figures(
    score: Floats, low: Floats, high: Floats, chance: Floats, roles: NDArray[np.bool_], lazy: Floats | None, seed: int
) -> Iterator[Figure]:
    """Yield the figures for scores `[role layer head]` with ends and chance, and lazy scores `[prompt layer]`."""
    num_layers, num_heads = roles.shape[1:]
    best = np.where(roles, score, -1.0).argmax(axis=0)
    any_role = roles.any(axis=0)
    strength = np.where(any_role, np.take_along_axis(score, best[None], 0)[0], 0.0)
    data, layout = chart.atlas(strength, np.ones_like(strength, bool), unit="strongest role's score")
    letters = [
        ["".join(letter for i, letter in enumerate(_LETTERS) if roles[i, layer, head]) for head in range(num_heads)]
        for layer in range(num_layers)
    ]
    if max(num_layers, num_heads) <= 32:
        data[0] |= {"text": letters, "texttemplate": "%{text}", "textfont": {"size": 11}}
    key = ", ".join(f"{letter} {role}" for letter, role in zip(_LETTERS, ROLES, strict=True))
    yield chart.figure(
        "role_atlas",
        f"{int(any_role.sum()) or 'None'} of {any_role.size} heads play a role",
        f"Each head by its strongest role's score, layer 0 at the bottom: {key}; empty where it plays none.",
        data,
        layout,
    )
    yield _against_chance(score, low, high, chance, roles)
    if lazy is not None:
        yield _lazy(lazy, seed)


def _against_chance(score: Floats, low: Floats, high: Floats, chance: Floats, roles: NDArray[np.bool_]) -> Figure:
    data: list[chart.Trace] = []
    for index, role in enumerate(ROLES):
        # The strongest of a large model's heads: thousands of markers say no more.
        order = np.argsort(-score[index], axis=None, kind="stable")[: _MOST_SHOWN // len(ROLES)]
        where = [np.unravel_index(int(i), score.shape[1:]) for i in order]
        take = [np.array([array[index][at] for at in where]) for array in (chance, score, low, high)]
        data.append(
            chart.line(
                role, take[0], take[1], take[2], take[3], color=chart.SERIES[index],
                symbol=chart.SYMBOLS[index], mode="markers",
                text=[f"layer {at[0]}, head {at[1]}" for at in where],
                hovertemplate="%{text}<br>by reach %{x:.3f}, score %{y:.3f}<extra>" + role + "</extra>",
            )
        )  # fmt: skip
    data.append(
        chart.line(
            "as much as by reach", [0, 1], [0, 1], color=chart.QUIET, dash="dash", mode="lines", hoverinfo="skip"
        )
    )
    return chart.figure(
        "role_chance",
        "Where attention goes, against what reach alone would send there",
        f"Each marker is one head's score with its 95 % interval over prompts, the {_MOST_SHOWN // len(ROLES)} largest "
        "of each role. On the dashed line attention is what the head's window (streaming, recency, previous token) or "
        "its attention by distance (duplicates, induction) gives by itself.",
        data,
        {
            "xaxis": chart.share_axis("attention there by reach alone"),
            "yaxis": chart.share_axis("attention there"),
            "height": 460,
        },
    )


def _lazy(lazy: Floats, seed: int) -> Figure:
    layers = np.arange(lazy.shape[1])
    ends = mean_ends(lazy, bounds=(0.0, 1.0), seed=seed) if len(lazy) > 1 else (None, None)
    hover = {"hovertemplate": "layer %{x}: %{y:.3f}<extra></extra>"}
    data = [chart.line("last query", layers, lazy.mean(axis=0), *ends, **hover)]
    return chart.figure(
        "lazy_layers",
        "How lazy each layer is",
        "Attention of the prompt's last query on the first 4 and the last keys, mean over heads and prompts, with the "
        "95 % interval over prompts. Dashed: the lowest and the highest of the published thresholds.",
        data,
        {
            "xaxis": chart.axis("layer", dtick=max(1, len(layers) // 16)),
            "yaxis": chart.share_axis("attention on the first and last keys"),
            "shapes": [chart.rule(y=limit) for limit in _PUBLISHED],
        },
    )

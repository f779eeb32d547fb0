"""What a cache could lose of its channels and its layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]
RATIOS: Final = (0.25, 0.5, 0.75)
"""Shares of the key channels that are dropped."""


def channel_scores_kept(traces: Iterable[Trace]) -> dict[str, Floats]:
    """Return, by prompt, the share of ThinK's score that stays when the lowest channels go, `[ratio layer kv_head]`.

    The score of a channel is the mean square of the last queries' entries times that of the keys' (after rotation).
    """
    found = {}
    for trace in traces:
        if "key_channel_energy" not in trace or "key_channel_energy_query" not in trace:
            continue
        key, query = (
            trace[name].transpose("layer", "kv_head", "channel").to_numpy().astype(np.float64)
            for name in ("key_channel_energy", "key_channel_energy_query")
        )
        score = np.sort(key * query, axis=-1)
        total = score.sum(axis=-1)
        if not np.isfinite(score).all() or not (total > 0).all():
            continue
        kept = [score[..., int(ratio * score.shape[-1]) :].sum(axis=-1) / total for ratio in RATIOS]
        found[trace.sample.name] = np.stack(kept)
    return found


def layer_similarities(traces: Iterable[Trace]) -> dict[str, Floats]:
    """Return, by prompt, the mean cosine of keys with those of the layer before, `[layer]`; NaN where there is none."""
    found = {}
    for trace in traces:
        if "key_layer_similarity" not in trace:
            continue
        array = trace["key_layer_similarity"]
        values = array.to_numpy().astype(np.float64).reshape(array.sizes["layer"], -1)
        there = np.isfinite(values)
        means = np.full(len(values), np.nan)
        for layer in range(len(values)):
            if there[layer].any():
                means[layer] = values[layer, there[layer]].mean()
        found[trace.sample.name] = means
    return found

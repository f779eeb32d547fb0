"""Which rotary pairs make the logits of chosen heads, beside those of the other heads of the same layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.rope_reading import wavelengths
from probe.analyses.measures.state_readings import trained_length
from probe.finding import Interval, Measurement
from probe.intervals import by_cluster, mean_ends

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]
NEAREST: Final = 64
"""Pairs of tokens nearer than this are left out, as by `positional_heads`."""


@dataclass(frozen=True)
class RopeSignature:
    """Mean share of each rotary pair in the absolute parts of the logits, fastest pair first, `[rope_pair]`."""

    chosen: Floats
    """Mean over the chosen heads and the prompts."""
    others: Floats
    """Mean over the other heads of their layers."""
    by_prompt: Floats
    """`[prompt rope_pair]` Chosen less others."""
    slow: NDArray[np.bool_] | None
    """Which pairs' wavelengths are above the training length; None where that or the frequencies are not known."""

    def measurement(self, seed: int) -> Measurement | None:
        """Return how much more of the logits slow pairs make in the chosen heads, with its interval over prompts."""
        if self.slow is None or not self.slow.any():
            return None
        more = 100 * self.by_prompt[:, self.slow].sum(-1)
        interval = None
        if len(more) > 1:
            low, high = mean_ends(more, seed=seed)
            interval = Interval(low=float(low), high=float(high), method="BCa bootstrap over prompts")
        return Measurement(
            name="more of the logits from rotary pairs slower than training is long, than other heads of these layers "
            "(this toolkit's own)",
            value=float(more.mean()),
            unit="percentage points",
            interval=interval,
            n=len(more),
        )


def rope_signature(traces: Sequence[Trace], heads: Collection[tuple[int, int]]) -> RopeSignature | None:
    """Return the signature of these heads, from pairs of tokens 64 or more apart.

    None where `rope_share` was not captured, where no tokens stand so far apart, or where the heads' layers have no
    other heads. Heads of layers that do not turn are left aside.
    """
    found: list[Floats] = []
    prompts: list[str] = []
    slow: NDArray[np.bool_] | None = None
    trained = trained_length(traces, None)
    for trace in traces:
        if "rope_share" not in trace:
            continue
        share = _by_head(trace)
        layers = [int(layer) for layer in trace["rope_share"]["layer"].to_numpy()]
        place = {layer: row for row, layer in enumerate(layers)}
        own = [(place[layer], head) for layer, head in heads if layer in place]
        rest = [(row, head) for row in {row for row, _ in own} for head in range(share.shape[1])]
        rest = [at for at in rest if at not in own]
        both = np.stack([_mean(share, own), _mean(share, rest)])
        if not np.isfinite(both).all():
            continue
        found.append(both)
        prompts.append(trace.sample.name)
        length = wavelengths(trace.provenance.get("positions") or {}, layers[own[0][0]])
        if trained is not None and length is not None and len(length) <= both.shape[1]:
            # The part of channels that do not turn comes last, and is of no pair.
            slow = np.concatenate([length > trained, np.zeros(both.shape[1] - len(length), bool)])
    if not found:
        return None
    mean = by_cluster(found, prompts)
    chosen, others = mean.mean(axis=0)
    return RopeSignature(chosen, others, mean[:, 0] - mean[:, 1], slow)


def _by_head(trace: Trace) -> Floats:
    """`[layer head rope_pair]` Mean over the pairs of tokens drawn at 64 or further; NaN where there are none."""
    order = ("layer", "head", "distance_bin", "rope_pair")
    share = trace["rope_share"].transpose(*order).to_numpy().astype(np.float64)
    drawn = trace["rope_share_num_pairs"].transpose(*order[:3]).to_numpy().astype(np.float64)
    edges = np.array([0, *(1 << b for b in range(share.shape[2] - 1))])
    far = np.where(edges >= NEAREST, drawn, 0.0)
    whole = far.sum(-1, keepdims=True)
    mean = np.einsum("lhb,lhbp->lhp", far, np.nan_to_num(share)) / np.maximum(whole, 1)
    return np.asarray(np.where(whole > 0, mean, np.nan), np.float64)


def _mean(share: Floats, heads: Sequence[tuple[int, int]]) -> Floats:
    if not heads:
        return np.full(share.shape[-1], np.nan)
    return np.asarray(np.mean([share[at] for at in heads], axis=0), np.float64)

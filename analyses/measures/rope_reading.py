"""What one prompt says of each head's rotary pairs: how slow ones go with the distance, and with the logit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probe.selection import LeftOut, fact, holding, reads_the_text

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RopeReading:
    """One prompt's numbers, of every head; NaN for a head of which nothing can be said."""

    prompt: str
    """Name of the sample."""
    unit: str
    """The trace that holds it."""
    half: str
    """`find` or `test`."""
    by_distance: Floats
    """`[layer head]` Variant 1: correlation of the low-frequency pairs' share of the logit's parts with distance."""
    shuffled: Floats
    """`[layer head]` The same with each pair of tokens given another pair's distance."""
    by_logit: Floats
    """`[layer head]` Variant 2: mean correlation of low-frequency parts with the logit, less that of the others."""
    low_share: Floats
    """`[layer head distance_bin]` Mean share of the low-frequency pairs, by distance."""
    pair_share: Floats
    """`[layer head rope_pair]` Mean share of each pair, over the drawn pairs of tokens at the nearest distance or
    beyond."""
    edges: Floats
    """`[distance_bin]` Smallest distance of each bin."""


def wavelengths(positions: Mapping[str, Any], layer: int) -> Floats | None:
    """Return the wavelengths in tokens of a layer's rotary pairs; None where the layer does not turn."""
    table = positions.get("layers", {}).get(str(layer), {}).get("table")
    if table is None or table not in positions.get("rotary", {}):
        return None
    frequency = np.asarray(positions["rotary"][table]["inverse_frequencies"], np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(frequency > 0, 2 * np.pi / frequency, np.inf))


def rope_readings(traces: Iterable[Trace], trained: int, nearest: int, left_out: LeftOut) -> Iterator[RopeReading]:
    """Yield what each prompt says; those of which nothing can be said are left out and counted.

    Where prompts are not of both halves, every second one is to test with. Raises MissingStatistic where no trace
    holds a statistic that is needed.
    """
    usable = []
    for trace in traces:
        if trace.outcome is not None and trace.outcome.failed:
            left_out.add("the unit failed")
        elif not reads_the_text(trace):
            left_out.add('the text stands in the encoder: its trace to read is trace.part("encoder")')
        else:
            usable.append(trace)
    correlation = "rope_correlation" if nearest == 64 else f"rope_correlation_nearest_{nearest}"
    usable = holding(holding(usable, correlation, left_out), "rope_share", left_out)
    halved = {str(fact(trace, "half")) for trace in usable} == {"find", "test"}
    for index, trace in enumerate(usable):
        half = str(fact(trace, "half")) if halved else ("find", "test")[index % 2]
        reading = _reading(trace, half, correlation, trained, nearest, left_out)
        if reading is not None:
            yield reading


def _reading(trace: Trace, half: str, name: str, trained: int, nearest: int, left_out: LeftOut) -> RopeReading | None:
    positions = trace.provenance.get("positions") or {}
    array = trace[name]
    layers = [int(layer) for layer in (array["layer"] if "layer" in array.coords else range(array.sizes["layer"]))]
    logit, distance, shuffled = (
        trace[each].transpose("layer", "head", "rope_pair").to_numpy().astype(np.float64)
        for each in (name, f"{name}_distance", f"{name}_shuffled")
    )
    share = trace["rope_share"].transpose("layer", "head", "distance_bin", "rope_pair").to_numpy().astype(np.float64)
    drawn = trace["rope_share_num_pairs"].transpose("layer", "head", "distance_bin").to_numpy().astype(np.float64)
    edges = np.array([0, *(1 << b for b in range(share.shape[2] - 1))], np.float64)
    scores = np.full((3, *logit.shape[:2]), np.nan)
    low_share = np.full(share.shape[:3], np.nan)
    reasons: list[str] = []
    for row, layer in enumerate(layers):
        length = wavelengths(positions, layer)
        if length is None:
            reasons.append("no rotary frequencies are known")
            continue
        low = length > trained
        first = len(low) - int(low.sum())
        if not 0 < first < len(low) or not low[first:].all():
            reasons.append(
                f"no rotary pair has a wavelength above the {trained:,} tokens of the training length"
                if not low.any()
                else "all rotary pairs have wavelengths above the training length"
                if low.all()
                else "rotary frequencies do not fall from pair to pair"
            )
            continue
        scores[0, row], scores[1, row] = distance[row, :, first], shuffled[row, :, first]
        # The part of channels that do not turn comes after the pairs, and is of neither kind.
        scores[2, row] = logit[row, :, first : len(low)].mean(-1) - logit[row, :, :first].mean(-1)
        low_share[row] = share[row, :, :, first : len(low)].sum(-1)
    if not np.isfinite(scores).all(axis=0).any():
        left_out.add(reasons[0] if reasons else f"no two tokens stand {nearest} or more apart")
        return None
    far = np.where(edges >= nearest, drawn, 0.0)
    whole = far.sum(-1, keepdims=True)
    mean = np.einsum("lhb,lhbp->lhp", far, np.nan_to_num(share)) / np.maximum(whole, 1)
    pair_share = np.where(whole > 0, mean, np.nan)
    return RopeReading(
        prompt=trace.sample.name,
        unit=trace.unit,
        half=half,
        by_distance=scores[0],
        shuffled=scores[1],
        by_logit=scores[2],
        low_share=low_share,
        pair_share=pair_share,
        edges=edges,
    )

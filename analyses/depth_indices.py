"""What a profile over depths comes to in one number: gap, U-index, primacy, recency, with their intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from probe.finding import Interval
from probe.intervals import square_and_add

Floats = NDArray[np.float64]


def position_indices(accuracy: Floats) -> dict[str, Floats]:
    """Return the indices of profiles `[… depth]`, depths in order: gap, U, primacy and recency, in the profile's unit.

    gap = best - worst; with worst inner = the least away from both ends: U = (first + last) / 2 - worst inner, primacy
    = first - worst inner, recency = last - worst inner. Those three need three depths, and are NaN for fewer.
    """
    profile = np.asarray(accuracy, np.float64)
    first, last = profile[..., 0], profile[..., -1]
    inner = profile[..., 1:-1].min(axis=-1) if profile.shape[-1] > 2 else np.full(profile.shape[:-1], np.nan)
    return {
        "gap": profile.max(axis=-1) - profile.min(axis=-1),
        "U": (first + last) / 2 - inner,
        "primacy": first - inner,
        "recency": last - inner,
    }


def index_interval(name: str, right: NDArray[np.bool_], where: NDArray[np.int64], num_depths: int) -> Interval:
    """Return an index' interval, for the depths that are best and worst in these prompts."""
    counts = np.bincount(where, minlength=num_depths)
    hits = np.bincount(where, weights=right, minlength=num_depths).astype(int)
    rates = hits / counts
    last, inner = num_depths - 1, 1 + int(rates[1:-1].argmin()) if num_depths > 2 else 0
    weights = {
        "gap": ((1.0, int(rates.argmax())), (-1.0, int(rates.argmin()))),
        "U": ((0.5, 0), (0.5, last), (-1.0, inner)),
        "primacy": ((1.0, 0), (-1.0, inner)),
        "recency": ((1.0, last), (-1.0, inner)),
    }[name]
    interval = square_and_add([(weight, int(hits[at]), int(counts[at])) for weight, at in weights])
    low, high = max(100 * interval.low, -100.0), min(100 * interval.high, 100.0)
    return interval.model_copy(update={"low": low, "high": high})

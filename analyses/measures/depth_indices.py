"""What a profile over depths comes to in one number: gap, U-index, primacy, recency."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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

"""How far both ends of a profile over places lie above what is between them, and the curve that is drawn through it.

This toolkit's own: papers show curves and give no number. `NUMBERS` are weighted sums of a profile, so that their
interval needs nothing chosen by the data, as the worst place is in the U-index. Of a profile that only rises or only
falls one of primacy and recency is never above 0; of a parabola fitted to it both may be, since it bends where the
profile has a corner.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

NUMBERS: Final = ("U", "primacy", "recency")
"""Primacy and recency: the first and the last place less the mean of the inner ones; U: the mean of these two."""
FEWEST_PLACES: Final = 3
"""With fewer places there is nothing between the ends, and no parabola."""


def end_weights(num_places: int) -> Floats:
    """Return what each place of a profile weighs in `NUMBERS`, `[number place]`; ValueError for fewer than three."""
    if num_places < FEWEST_PLACES:
        raise ValueError(f"a middle needs three places, not {num_places}")
    inner = np.full(num_places, 1.0 / (num_places - 2))
    inner[[0, -1]] = 0.0
    first, last = np.eye(num_places)[[0, -1]]
    return np.stack([(first + last) / 2 - inner, first - inner, last - inner])


def fitted_weights(places: ArrayLike) -> Floats:
    """Return what each place weighs in U, primacy and recency of the parabola that fits a profile best (least squares).

    Its middle lies between the first and the last of the places, which are in order. ValueError for fewer than three.
    """
    x = np.asarray(places, np.float64)
    if len(np.unique(x)) < FEWEST_PLACES:
        raise ValueError(f"a parabola needs three different places, not {x.tolist()}")
    ends = fitted_curve(x, np.eye(len(x)), [x[0], (x[0] + x[-1]) / 2, x[-1]])
    first, middle, last = ends
    return np.stack([(first + last) / 2 - middle, first - middle, last - middle])


def fitted_curve(places: ArrayLike, profile: ArrayLike, at: ArrayLike) -> Floats:
    """Return the parabola fitted to `profile [place …]`, at other places, `[at …]`."""
    powers = np.vander(np.asarray(places, np.float64), 3, increasing=True)
    coefficients = np.linalg.pinv(powers) @ np.asarray(profile, np.float64)
    return np.asarray(np.vander(np.asarray(at, np.float64), 3, increasing=True) @ coefficients)

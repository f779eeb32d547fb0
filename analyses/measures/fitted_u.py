"""How far the ends of a profile over positions lie above its middle, by the parabola that fits it best.

This toolkit's own: no published curve says how deep a dip is. The parabola is least squares', so that its three numbers
are weighted sums of the profile: an interval of theirs needs no refitting, and nothing is chosen by the data, as the
worst place is in the U-index over raw rates.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

NUMBERS: Final = ("U", "primacy", "recency")
"""U: the mean of the fitted ends less the fitted middle; primacy and recency: the first and the last end less it."""
FEWEST_PLACES: Final = 3
"""A parabola through fewer places would be made up."""


def fitted_weights(places: ArrayLike) -> Floats:
    """Return what each place of a profile weighs in `NUMBERS`, `[number place]`, for places within [0, 1], in order.

    The fit is over these places alone and reaches from the first of them to the last; its middle lies between these.
    Raises ValueError for fewer than three different places.
    """
    x = np.asarray(places, np.float64)
    if len(np.unique(x)) < FEWEST_PLACES:
        raise ValueError(f"a parabola needs three different places, not {x.tolist()}")
    powers = np.vander(x, 3, increasing=True)
    # Least squares is linear: a profile's coefficients are this matrix times it.
    coefficients = np.linalg.pinv(powers)
    first, middle, last = np.vander([x[0], (x[0] + x[-1]) / 2, x[-1]], 3, increasing=True) @ coefficients
    return np.stack([(first + last) / 2 - middle, first - middle, last - middle])


def fitted_curve(places: ArrayLike, profile: ArrayLike, at: ArrayLike) -> Floats:
    """Return the fitted parabola of `profile [place]` at other places."""
    powers = np.vander(np.asarray(places, np.float64), 3, increasing=True)
    coefficients = np.linalg.pinv(powers) @ np.asarray(profile, np.float64)
    return np.asarray(np.vander(np.asarray(at, np.float64), 3, increasing=True) @ coefficients)

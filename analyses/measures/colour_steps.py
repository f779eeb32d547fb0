"""How far a value stands between nothing and the most there is: what colours and bars follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["log", "linear", "signed"]

NUM_STEPS: Final = 8
"""Colours of a scale: as many as can be told apart, and named in a legend."""

_DECADES: Final = 5.0


@dataclass(frozen=True)
class ColourSteps:
    """A scale from `low` to `high`."""

    low: float
    high: float
    kind: Kind
    """`log`, `linear`, or `signed`: linear from −`high` to `high`, with nothing in the middle."""

    def shares(self, values: Floats) -> Floats:
        """Return how far along the scale values lie, 0 to 1; NaN stays NaN."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.kind == "log":
                shares = np.log(values / self.low) / np.log(self.high / self.low)
                shares = np.where(values <= 0, 0.0, shares)
            else:
                shares = (values - self.low) / (self.high - self.low)
        return np.asarray(np.clip(shares, 0.0, 1.0), np.float64)

    def edges(self) -> list[float]:
        """Return the value at which each colour begins, and at which the last one ends."""
        along = np.linspace(0.0, 1.0, NUM_STEPS + 1)
        if self.kind == "log":
            return [float(edge) for edge in self.low * (self.high / self.low) ** along]
        return [float(edge) for edge in self.low + (self.high - self.low) * along]


def colour_steps(values: Floats, scale: Literal["log", "linear"]) -> ColourSteps:
    """Return the scale for values: to their largest, from 0, or on a log scale from what few of them lie below.

    Log: from the first percentile of the positive ones, but at most five decades. Where some are negative it is linear
    and has both signs, whatever was asked for. NaN and infinity count nowhere.
    """
    finite = values[np.isfinite(values)]
    if not finite.size or not finite.any():
        return ColourSteps(0.0, 1.0, "linear")
    if finite.min() < 0:
        most = float(np.abs(finite).max())
        return ColourSteps(-most, most, "signed")
    high = float(finite.max())
    if scale == "linear":
        return ColourSteps(0.0, high, "linear")
    low = max(float(np.percentile(finite[finite > 0], 1)), high * 10**-_DECADES)
    return ColourSteps(low if low < high else high / 10, high, "log")

"""Right answers by place at one length: how far the ends lie above the middle, also with places shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.depth_indices import position_indices
from probe.analyses.measures.ends_and_middle import FEWEST_PLACES, NUMBERS, end_weights, fitted_weights
from probe.finding import Interval
from probe.intervals import square_and_add

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

DRAWS: Final = 4_999
"""Shuffles of places among the prompts of a length."""


@dataclass(frozen=True)
class PlaceProfile:
    """The prompts of one length: how many were asked, and how many answered right, with the answer at each place."""

    length: int
    """Length in tokens that was asked for."""
    places: tuple[float, ...]
    """Where the answer stood, from 0 (first) to 1 (last), in order; three or more."""
    asked: Integers
    right: Integers
    seed: int

    @property
    def n(self) -> int:
        """Number of prompts."""
        return int(self.asked.sum())

    @property
    def tells(self) -> bool:
        """Whether there are right and wrong answers: elsewhere ceiling or floor hides what places do."""
        return 0 < int(self.right.sum()) < self.n

    @property
    def percent(self) -> Floats:
        """Percent right at each place."""
        return 100.0 * self.right / self.asked

    @cached_property
    def indices(self) -> dict[str, float]:
        """U-index, primacy, recency and gap over the worst inner place, in points (`position_indices`)."""
        return {name: float(value) for name, value in position_indices(self.percent).items()}

    def index_interval(self, name: str) -> Interval | None:
        """Return an index' interval with its places held as they were observed; None for the gap, which has no sign.

        The worst inner place was chosen by the same data, which the interval does not know: shuffled places say what
        that choice alone gives.
        """
        if name not in NUMBERS:
            return None
        worst = 1 + int(self.percent[1:-1].argmin())
        first, last = {"U": (0.5, 0.5), "primacy": (1.0, 0.0), "recency": (0.0, 1.0)}[name]
        weights = np.zeros(len(self.places))
        weights[0], weights[-1], weights[worst] = first, last, -1.0
        return self.interval(100.0 * weights)

    def interval(self, weights: Floats) -> Interval:
        """Return the interval of a weighted sum of the rates at each place."""
        return square_and_add(self.parts(weights))

    def parts(self, weights: Floats) -> list[tuple[float, int, int]]:
        """Return what `square_and_add` asks of each place that weighs anything."""
        each = zip(weights.tolist(), self.right.tolist(), self.asked.tolist(), strict=True)
        return [part for part in each if part[0] != 0]

    @cached_property
    def weights(self) -> Floats:
        """What each place weighs in U, primacy and recency over the inner places' mean, in points, `[number place]`."""
        return 100.0 * end_weights(len(self.places))

    @cached_property
    def values(self) -> dict[str, float]:
        """U, primacy and recency over the mean of the inner places, in points."""
        return self._sums(self.weights)

    def value_interval(self, name: str) -> Interval:
        """Return the interval of one of `values`."""
        return self.interval(self.weights[NUMBERS.index(name)])

    @cached_property
    def fitted(self) -> dict[str, float]:
        """U, primacy and recency of the fitted parabola, in points."""
        return self._sums(100.0 * fitted_weights(self.places))

    def fitted_interval(self, name: str) -> Interval:
        """Return the interval of a number of the fitted curve."""
        return self.interval(100.0 * fitted_weights(self.places)[NUMBERS.index(name)])

    def _sums(self, weights: Floats) -> dict[str, float]:
        # Rounded, since weights that cancel leave 1e-14 of a flat profile.
        return dict(zip(NUMBERS, (weights @ (self.right / self.asked)).round(9).tolist(), strict=True))

    @cached_property
    def shuffled_rates(self) -> Floats:
        """Share right at each place with places shuffled among the prompts, `[draw place]`.

        Shuffled, the right answers fall on the places as draws without replacement.
        """
        generator = np.random.default_rng([self.seed, self.length])
        total = int(self.right.sum())
        return np.asarray(
            generator.multivariate_hypergeometric(self.asked, total, size=DRAWS, method="marginals") / self.asked
        )

    @cached_property
    def shuffled(self) -> Floats:
        """U, primacy and recency of shuffled places, in points, `[draw number]`."""
        return np.asarray(self.shuffled_rates @ self.weights.T)

    @cached_property
    def p_value(self) -> float:
        """That both ends lie above the middle: the larger of the p-values that each of them does (one-sided)."""
        return both_ends(np.array([self.values[name] for name in NUMBERS]), self.shuffled)


def both_ends(observed: Floats, shuffled: Floats) -> float:
    """Return the larger of the two permutation p-values of primacy and recency, the observed counted among the draws.

    An intersection-union test: a profile that only rises, or only falls, does not pass it.
    """
    above = (shuffled[:, 1:] >= observed[1:] - 1e-9).sum(axis=0)
    return float(((1 + above) / (1 + len(shuffled))).max())


def profiles(correct: Sequence[bool], lengths: Sequence[int], places: Sequence[float], seed: int) -> list[PlaceProfile]:
    """Return a profile for each length at which three places or more were asked, in order of the length."""
    right, at, where = np.asarray(correct, bool), np.asarray(lengths, np.int64), np.asarray(places, np.float64)
    made = []
    for length in np.unique(at):
        here = at == length
        known, index = np.unique(where[here], return_inverse=True)
        if len(known) < FEWEST_PLACES:
            continue
        asked = np.bincount(index, minlength=len(known))
        hits = np.bincount(index[right[here]], minlength=len(known))
        made.append(PlaceProfile(int(length), tuple(known.tolist()), asked, hits, seed))
    return made


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979, Scandinavian Journal of Statistics 6:65)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1.0)
    return [float(value) for value in adjusted]

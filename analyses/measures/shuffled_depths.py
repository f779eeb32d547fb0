"""Whether right answers depend on the needle's depth, against depths shuffled among the prompts of each length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from probe.finding import Interval

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

DRAWS = 4_999
"""Shuffles of correctness."""
LOSS_DRAWS = 999
"""Shuffles of the answer's loss, which are slower."""
_SHAPES = {
    (0, True): "the beginning is lost",
    (0, False): "the end is lost",
    (1, True): "the middle is lost",
    (1, False): "the beginning and the end are lost",
}


@dataclass(frozen=True)
class DepthProfile:
    """Right answers by depth, over the lengths that have right and wrong ones, beside shuffled depths.

    Where lengths do not ask at the same depths, the accuracy of a depth is taken less the mean of its prompts' lengths.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    asked: Integers
    """Prompts at each depth."""
    right: Integers
    """Of them, those that were answered right."""
    accuracy: Floats
    """Percent right at each depth, `[depth]`."""
    shuffled: Floats
    """The same with depths shuffled among the prompts of each length, `[draw depth]`."""

    @property
    def n(self) -> int:
        return int(self.asked.sum())

    @cached_property
    def p_value(self) -> float:
        """That depth matters: by the squares of the profile's slope and bend, added.

        It sees what rises, falls or sags with depth better than a spread over all depths does, of which it is the part
        that a parabola explains; up to three depths it is that spread.
        """
        return _tail(float((self._slopes[0] ** 2).sum()), (self._slopes[1] ** 2).sum(axis=-1))

    @cached_property
    def shape(self) -> str | None:
        """What is lost, by the larger of slope and bend; None where neither is beyond chance by itself."""
        sizes = np.abs(self._slopes[0])
        largest = int(sizes.argmax())
        if _tail(float(sizes[largest]), np.abs(self._slopes[1]).max(axis=-1)) >= 0.05:
            return None
        return _SHAPES[largest, bool(self._slopes[0][largest] > 0)]

    @cached_property
    def _slopes(self) -> tuple[Floats, Floats]:
        """Slope and bend of the profile and of the shuffled ones: positive where the last depth is the better."""
        powers = np.vander(np.array(self.depths), min(3, len(self.depths)), increasing=True)
        basis = np.linalg.qr(powers)[0][:, 1:]
        basis = basis * np.sign(basis[-1])
        return np.asarray(self.accuracy @ basis), np.asarray(self.shuffled @ basis)

    @property
    def gap(self) -> float:
        """Accuracy at the best depth less that at the worst, in points."""
        return float(np.ptp(self.accuracy))

    @cached_property
    def gap_interval(self) -> Interval:
        """All depths at once, as in Tukey's: no gap is further from the true one than shuffled depths' 95 % quantile.

        The range of observed rates differs from that of true rates by at most the range of their errors.
        """
        reach = float(np.quantile(np.ptp(self.shuffled, axis=-1), 0.95))
        low, high = max(self.gap - reach, 0.0), min(self.gap + reach, 100.0)
        return Interval(
            low=low, high=high, method="conservative, all depths at once, as far as shuffled depths scatter"
        )


def shuffled_depths(
    right: NDArray[np.bool_], length: Integers, depth: Floats, *, draws: int = DRAWS, seed: int = 0
) -> DepthProfile | None:
    """Return the profile of prompts `[prompt]`; None where no length has two depths, and right and wrong answers.

    Which lengths those are does not hang on which prompt stood at which depth, so that the test stays exact.
    """
    told = [at for at in np.unique(length) if _tells(right[length == at], depth[length == at])]
    if not told:
        return None
    kept = np.isin(length, told)
    depths = np.unique(depth[kept])
    generator = np.random.default_rng([seed, 1])
    asked, hits = np.zeros(len(depths), np.int64), np.zeros(len(depths), np.int64)
    expected, drawn = np.zeros(len(depths)), np.zeros((draws, len(depths)))
    for at in told:
        here = length == at
        counts = np.bincount(np.searchsorted(depths, depth[here]), minlength=len(depths))
        hits += np.bincount(np.searchsorted(depths, depth[here & right]), minlength=len(depths))
        asked += counts
        expected += counts * right[here].mean()
        # Shuffled, the right answers fall on the depths as draws without replacement.
        drawn += generator.multivariate_hypergeometric(counts, right[here].sum(), size=draws, method="marginals")
    mean = hits.sum() / asked.sum()
    return DepthProfile(
        lengths=tuple(int(at) for at in told),
        depths=tuple(float(at) for at in depths),
        asked=asked,
        right=hits,
        accuracy=100 * (mean + (hits - expected) / asked),
        shuffled=100 * (mean + (drawn - expected) / asked),
    )


def loss_p_value(
    loss: Floats, length: Integers, depth: Floats, *, draws: int = LOSS_DRAWS, seed: int = 0
) -> float | None:
    """Return the p-value of the spread of the answer loss' ranks over depths; None where no length has two depths."""
    lengths = [at for at in np.unique(length) if len(np.unique(depth[length == at])) > 1]
    if not lengths:
        return None
    kept = np.isin(length, lengths)
    depths, where = np.unique(depth[kept], return_inverse=True)
    rank, places = np.zeros(int(kept.sum())), [np.flatnonzero(length[kept] == at) for at in lengths]
    for here in places:
        rank[here] = stats.rankdata(loss[kept][here]) / (len(here) + 1) - 0.5
    counts = np.bincount(where, minlength=len(depths))

    def spread(at: Integers) -> float:
        return float((np.bincount(at, weights=rank, minlength=len(depths)) ** 2 / counts).sum())

    generator, shuffled, drawn = np.random.default_rng([seed, 2]), where.copy(), []
    for _ in range(draws):
        for here in places:
            shuffled[here] = generator.permutation(where[here])
        drawn.append(spread(shuffled))
    return _tail(spread(where), np.array(drawn))


def _tells(right: NDArray[np.bool_], depth: Floats) -> bool:
    return bool(0 < right.mean() < 1 and len(np.unique(depth)) > 1)


def _tail(observed: float, drawn: Floats) -> float:
    """Return the permutation p-value that counts what was observed among the draws."""
    return float((1 + (drawn >= observed * (1 - 1e-9)).sum()) / (1 + len(drawn)))

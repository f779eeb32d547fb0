"""How far each head's state leaves the range that it had up to the training length, and from where on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from probe.analyses.measures.state_readings import Floats, Head, StateReading
from probe.finding import Interval
from probe.intervals import mean_ends, percentiles, resamples

REACHES = 0.95
"""Share of twice the training length that a text must reach; workloads meet a length to within an item of theirs."""
LEVEL = 0.05
"""False-discovery rate (Benjamini and Hochberg) at which a head is said to explode."""


@dataclass(frozen=True)
class Growth:
    """What `state_growth` found, heads in the order of `heads`, prompts in that of `prompts`."""

    heads: tuple[Head, ...]
    prompts: tuple[str, ...]
    halves: tuple[str | None, ...]
    log_ratio: Floats
    """`[prompt head]` ln of the variance at twice the training length over the largest within it."""
    log_ratio_at_end: Floats
    """`[prompt head]` The same at each text's end."""
    slope: Floats
    """`[prompt head]` Slope of ln variance over the second half of what lies beyond, per training length of tokens."""
    onset: Floats
    """`[prompt head]` Tokens from which on the variance stays above the threshold; inf where it does not."""
    q: Floats
    """`[head]` Adjusted p-value that the ratio lies above the threshold and the variance still rises."""
    threshold: float

    @property
    def explodes(self) -> NDArray[np.bool_]:
        """`[head]` Whether its state is said to explode."""
        return self.q < LEVEL

    def ratio(self, seed: int = 0, rows: NDArray[np.int64] | None = None) -> tuple[Floats, Floats, Floats]:
        """Return the geometric mean of the ratio over prompts, `[head]`, and both ends of its interval."""
        values = self.log_ratio if rows is None else self.log_ratio[rows]
        low, high = mean_ends(values, seed=seed)
        return np.exp(values.mean(0)), np.exp(low), np.exp(high)

    def median_onset(self, head: int, rows: NDArray[np.int64], seed: int = 0) -> tuple[float, Interval | None]:
        """Return the median onset of a head in tokens over prompts, with its interval; inf where most have none.

        There is no interval where the median of a resample may have no onset either.
        """
        values = self.onset[rows, head]
        drawn = np.array([np.median(np.repeat(values, counts)) for counts in resamples(len(values), seed=seed)])
        if not np.isfinite(drawn).all():
            return float(np.median(values)), None
        low, high = percentiles(drawn)
        return float(np.median(values)), Interval(low=float(low), high=float(high), method="bootstrap over prompts")


def state_growth(readings: Sequence[StateReading], trained: int, threshold: float) -> Growth:
    """Measure growth over texts that reach twice the training length and were read within it and beyond.

    A head explodes where, over prompts, the ratio lies above `threshold` and the slope above 0: two one-sided t tests,
    of which the larger p-value counts (an intersection-union test), adjusted over heads.
    """
    log_ratio, at_end, slope, onset = [], [], [], []
    for reading in readings:
        log = np.log(reading.variance)
        within = reading.tokens <= trained
        most = log[:, within].max(1, keepdims=True)
        twice = int(np.abs(reading.tokens - 2 * trained).argmin())
        log_ratio.append((log - most)[:, twice])
        at_end.append((log - most)[:, -1])
        late = reading.tokens >= (trained + reading.tokens[-1]) / 2
        at = reading.tokens[late] / trained
        slope.append(((at - at.mean()) * log[:, late]).sum(1) / ((at - at.mean()) ** 2).sum())
        onset.append([_onset(row, reading.tokens, trained) for row in log - most > np.log(threshold)])
    ratios, slopes = np.array(log_ratio), np.array(slope)
    p = np.maximum(one_sided(ratios, np.log(threshold)), one_sided(slopes, 0.0))
    return Growth(
        heads=readings[0].heads,
        prompts=tuple(reading.prompt for reading in readings),
        halves=tuple(reading.half for reading in readings),
        log_ratio=ratios,
        log_ratio_at_end=np.array(at_end),
        slope=slopes,
        onset=np.array(onset),
        q=np.asarray(stats.false_discovery_control(p), np.float64),
        threshold=threshold,
    )


def why_not_measured(reading: StateReading, trained: int) -> str | None:
    """Return why growth cannot be measured on a text; None where it can."""
    if reading.tokens[-1] < REACHES * 2 * trained:
        return "the text does not reach twice the training length"
    if not (reading.tokens <= trained).any():
        return "the state was not read within the training length"
    if (reading.tokens >= (trained + reading.tokens[-1]) / 2).sum() < 2:
        return "the state was read fewer than twice in the second half of what lies beyond the training length"
    if not (reading.variance > 0).all():
        return "a head's state has no variance"
    return None


def _onset(above: NDArray[np.bool_], tokens: Floats, trained: int) -> float:
    """Return the tokens read at the first reading beyond the training length from which on all are above."""
    below = np.flatnonzero(~above | (tokens <= trained))
    first = int(below[-1]) + 1 if below.size else 0
    return float(tokens[first]) if first < len(tokens) else np.inf


def one_sided(values: Floats, over: float) -> Floats:
    """Return each head's p-value of a one-sided t test that its mean over prompts, `[prompt head]`, lies above.

    Where all prompts agree it is 0 or 1; of a single prompt it is 1.
    """
    n = len(values)
    excess = values.mean(0) - over
    if n < 2:
        return np.ones(values.shape[1])
    error = values.std(0, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, excess / error, np.where(excess > 0, np.inf, -np.inf))
    return np.asarray(stats.t.sf(t, n - 1), np.float64)

"""Intervals and paired tests: exact where the numbers are counts, resampled by prompt where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from probe.finding import Interval

Floats = NDArray[np.float64]

_AT_ONCE = 4096
DRAWS = 2_000
"""Bootstrap resamples: enough for two digits of a 95 % interval's ends."""
FEWEST_PROMPTS = 5
"""With fewer prompts than this no verdict is given: a bootstrap of four values knows nothing of the others."""


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval | None:
    """Return the exact interval of a proportion; None where n is 0. It holds where every observation agrees, too."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return None
    exact = stats.binomtest(successes, n).proportion_ci(confidence_level=level, method="exact")
    return Interval(low=float(exact.low), high=float(exact.high), level=level, method="Clopper-Pearson")


def square_and_add(parts: Sequence[tuple[float, int, int]], level: float = 0.95) -> Interval:
    """Return the interval of a weighted sum of independent proportions, from (weight, successes, n) of each.

    Newcombe's method (1998, Statistics in Medicine 17:873, method 10), as extended to sums by Zou and Donner: Wilson's
    interval of each part, distances squared and added. It has width where a part is 0 or 1, however few the prompts.
    """
    value = below = above = 0.0
    for weight, successes, n in parts:
        rate = successes / n
        wilson = stats.binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
        ends = sorted((weight * wilson.low, weight * wilson.high))
        value += weight * rate
        below += (weight * rate - ends[0]) ** 2
        above += (ends[1] - weight * rate) ** 2
    method = "Newcombe, from Wilson's interval of each part"
    return Interval(low=value - below**0.5, high=value + above**0.5, level=level, method=method)


def paired_difference(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Interval | None:
    """Return the interval of the share right in `first` less that in `second`, paired; None where there is no pair.

    The wider of two on each side: Newcombe's for paired proportions (1998, Statistics in Medicine 17:2635, method 10),
    and Clopper-Pearson's of the discordant pairs, which holds 0 exactly where `mcnemar_exact` gives p above 1 - level.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape:
        raise ValueError("pairs of unequal number")
    if a.size == 0:
        return None
    n, both, neither = a.size, int((a & b).sum()), int((~a & ~b).sum())
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    rates = (a.mean(), b.mean())
    wilson = [stats.binomtest(int(x.sum()), n).proportion_ci(level, method="wilson") for x in (a, b)]
    below = [rate - w.low for rate, w in zip(rates, wilson, strict=True)]
    above = [w.high - rate for rate, w in zip(rates, wilson, strict=True)]
    product = float(a.sum()) * float((~a).sum()) * float(b.sum()) * float((~b).sum())
    agreement = float(both * neither - only_first * only_second)
    if agreement > 0:
        agreement = max(agreement - n / 2, 0.0)
    phi = agreement / product**0.5 if product else 0.0
    value = float(rates[0] - rates[1])
    low = value - max(below[0] ** 2 - 2 * phi * below[0] * above[1] + above[1] ** 2, 0.0) ** 0.5
    high = value + max(above[0] ** 2 - 2 * phi * above[0] * below[1] + below[1] ** 2, 0.0) ** 0.5
    discordant = clopper_pearson(only_first, only_first + only_second, level)
    if discordant is not None:
        share = (only_first + only_second) / n
        low, high = min(low, share * (2 * discordant.low - 1)), max(high, share * (2 * discordant.high - 1))
    method = "the wider of Newcombe's for pairs and the exact one of the pairs that differ"
    return Interval(low=max(low, -1.0), high=min(high, 1.0), level=level, method=method)


def resamples(num_clusters: int, *, draws: int = DRAWS, seed: int = 0) -> NDArray[np.int64]:
    """Return how often each of `num_clusters` occurs in each of `draws` bootstrap resamples, `[draw cluster]`."""
    if num_clusters < 1:
        raise ValueError("nothing to resample")
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_clusters, np.full(num_clusters, 1.0 / num_clusters), size=draws)


def percentiles(drawn: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the percentile interval's ends over the first axis of resampled values."""
    low, high = np.quantile(np.asarray(drawn, np.float64), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.asarray(low), np.asarray(high)


def by_cluster(values: ArrayLike, clusters: Sequence[str]) -> Floats:
    """Return the mean of `values [observation …]` in each cluster, clusters in sorted order, `[cluster …]`."""
    array = np.asarray(values, np.float64)
    if len(array) != len(clusters):
        raise ValueError(f"{len(array)} values, {len(clusters)} clusters")
    if not np.isfinite(array).all():
        raise ValueError("values that are not finite must be dropped, and counted, before an interval is taken")
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), *array.shape[1:]))
    np.add.at(sums, index, array)
    counts = np.bincount(index, minlength=len(names)).reshape(-1, *([1] * (array.ndim - 1)))
    return np.asarray(sums / counts, np.float64)


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[str],
    *,
    bounds: tuple[float, float] | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval | None:
    """Return the BCa interval of the mean of the clusters' means, by resampling clusters (prompts) with replacement.

    None below two clusters. Where all clusters agree, a bootstrap has no width however few they are; with `bounds` of
    the quantity the exact bound stands in its place, which is Clopper-Pearson's where the value is 0 of [0, 1] or 1.
    """
    means = by_cluster(values, clusters)
    if means.ndim != 1:
        raise ValueError("one number per observation; see `mean_ends` for arrays")
    if len(means) < 2:
        return None
    low, high = mean_ends(means, bounds=bounds, level=level, draws=draws, seed=seed)
    agree = bounds is not None and np.ptp(means) == 0
    method = "exact bound, as all prompts agree" if agree else "BCa bootstrap over prompts"
    return Interval(low=float(low), high=float(high), level=level, method=method)


def mean_ends(
    means: ArrayLike,
    *,
    bounds: tuple[float, float] | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Return both ends of `cluster_bootstrap`'s interval for an array of quantities, `[cluster …]` to `[…]`."""
    array = np.asarray(means, np.float64)
    num_clusters = len(array)
    weights = resamples(num_clusters, draws=draws, seed=seed) / num_clusters
    flat = array.reshape(num_clusters, -1)
    # A few thousand quantities at a time: the resamples of a model's heads at every position need not fit at once.
    parts = [flat[:, at : at + _AT_ONCE] for at in range(0, flat.shape[1], _AT_ONCE)]
    low, high = np.concatenate([_bca(weights @ part, part, level) for part in parts], axis=1)
    if bounds is not None:
        agree = np.ptp(flat, axis=0) == 0
        exact_low, exact_high = all_agree(flat[0], num_clusters, bounds, level)
        low, high = np.where(agree, exact_low, low), np.where(agree, exact_high, high)
    return low.reshape(array.shape[1:]), high.reshape(array.shape[1:])


def _bca(drawn: Floats, observed: Floats, level: float) -> tuple[Floats, Floats]:
    """Return the ends of means resampled as `drawn [draw quantity]` from `observed [cluster quantity]`.

    Bias-corrected and accelerated (Efron 1987, Better Bootstrap Confidence Intervals, JASA 82:171): the quantiles that
    are read move with the median of the resamples and with the skewness of the jackknifed means. A resample that equals
    the mean counts half.
    """
    mean = observed.mean(axis=0)
    close = np.isclose(drawn, mean, rtol=1e-12, atol=0.0)
    below = ((drawn < mean) & ~close).mean(axis=0) + close.mean(axis=0) / 2
    bias = stats.norm.ppf(np.clip(below, 1 / (2 * len(drawn)), 1 - 1 / (2 * len(drawn))))
    # A mean without one of its clusters moves by what that cluster lies from it.
    moved = observed - mean
    spread = (moved**2).sum(axis=0)
    skew = (moved**3).sum(axis=0)
    acceleration = np.divide(skew, 6 * spread**1.5, out=np.zeros_like(skew), where=spread > 0)
    ordered = np.sort(drawn, axis=0)

    def end(share: float) -> Floats:
        reach = bias + stats.norm.ppf(share)
        at = stats.norm.cdf(bias + reach / (1 - acceleration * reach)) * (len(drawn) - 1)
        lower = np.floor(at).astype(np.int64)
        values = np.take_along_axis(ordered, np.stack([lower, np.minimum(lower + 1, len(drawn) - 1)]), axis=0)
        return np.asarray(values[0] + (at - lower) * (values[1] - values[0]), np.float64)

    return end((1 - level) / 2), end((1 + level) / 2)


def all_agree(value: ArrayLike, n: int, bounds: tuple[float, float], level: float = 0.95) -> tuple[Floats, Floats]:
    """Return both ends for the mean of a bounded quantity of which all `n` observations equal `value`.

    Other values then have probability below 1 - q, and move the mean furthest where they lie at a bound. For 0 of [0,
    1], and for 1, that is Clopper-Pearson's interval.
    """
    middle = np.asarray(value, np.float64)
    q = ((1 - level) / 2) ** (1 / n)
    return middle - (1 - q) * (middle - bounds[0]), middle + (1 - q) * (bounds[1] - middle)


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> float | None:
    """Return the exact McNemar p-value of two paired lists of right and wrong; None where there is no pair."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape:
        raise ValueError("pairs of unequal number")
    if a.size == 0:
        return None
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def sign_flip(differences: ArrayLike, *, draws: int = 9_999, seed: int = 0) -> float | None:
    """Return the two-sided paired permutation p-value that the mean difference is 0; None where there is none.

    Exact over all signs up to 12 pairs, above that from `draws` random signs (the observed ones counted among them).
    """
    values = np.asarray(differences, np.float64)
    if values.size == 0:
        return None
    if values.size <= 12:
        signs = np.array(list(product((1.0, -1.0), repeat=values.size)))
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice([1.0, -1.0], size=(draws, values.size))
        extra = 1
    observed = abs(values.sum())
    as_large = int((np.abs(signs @ values) >= observed * (1 - 1e-12)).sum())
    return (as_large + extra) / (len(signs) + extra)


def p_text(p_value: float, draws: int | None = None) -> str:
    """Return a p-value as claims print it: an upper bound where none of `draws` random permutations went as far."""
    if draws is not None and p_value <= 1.001 / (1 + draws):
        return f"p ≤ {1 / (1 + draws):.2g}"
    return "p < 0.0001" if p_value < 1e-4 else f"p = {p_value:.2g}"

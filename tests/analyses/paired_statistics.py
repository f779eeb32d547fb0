"""Paired statistics by other means than the package's: counting, bisection, and a bootstrap of its own. No scipy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from statistics import NormalDist

import numpy as np

NORMAL = NormalDist()
Z = NORMAL.inv_cdf(0.975)


def binomial_tail(n: int, least: int, p: float) -> float:
    """Probability of `least` successes or more."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(least, n + 1))


def mcnemar(gained: int, lost: int) -> float:
    """Twice the smaller tail of a fair coin."""
    n = gained + lost
    return min(1.0, 2 * binomial_tail(n, max(gained, lost), 0.5)) if n else 1.0


def adjusted(p: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's, by the definition: the least p m / rank of all that are as large or larger."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    q = [0.0] * len(p)
    least = 1.0
    for rank in range(len(p), 0, -1):
        i = order[rank - 1]
        least = min(least, p[i] * len(p) / rank)
        q[i] = least
    return q


def sign_flips(differences: Sequence[float]) -> float:
    """Share of all signs whose sum is as far from 0 as the observed one."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(each >= observed - 1e-9 for each in sums) / len(sums)


def clopper_pearson(successes: int, n: int) -> tuple[float, float]:
    low = 0.0 if successes == 0 else bisected(lambda p: binomial_tail(n, successes, p) - 0.025)
    # At the upper end so few successes or fewer have 2.5 %: one more or still more have the rest.
    high = 1.0 if successes == n else bisected(lambda p: binomial_tail(n, successes + 1, p) - 0.975)
    return low, high


def bisected(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def wilson(successes: int, n: int) -> tuple[float, float]:
    rate = successes / n
    middle = (rate + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(rate * (1 - rate) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return middle - half, middle + half


def paired_shares(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """Newcombe's tenth method for pairs, and the exact interval of the pairs that differ: the wider on each side."""
    n = both + gained + lost + neither
    after, before = both + gained, both + lost
    (l1, u1), (l2, u2) = wilson(after, n), wilson(before, n)
    p1, p2 = after / n, before / n
    product_ = after * (n - after) * before * (n - before)
    a = both * neither - gained * lost
    a = max(a - n / 2, 0) if a > 0 else a
    phi = a / math.sqrt(product_) if product_ else 0.0
    low = p1 - p2 - math.sqrt(max((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2, 0))
    high = p1 - p2 + math.sqrt(max((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2, 0))
    if gained + lost:
        share = (gained + lost) / n
        exact = clopper_pearson(gained, gained + lost)
        low, high = min(low, share * (2 * exact[0] - 1)), max(high, share * (2 * exact[1] - 1))
    return max(low, -1.0), min(high, 1.0)


def bca(differences: Sequence[float], *, draws: int = 40_000, seed: int = 99) -> tuple[float, float]:
    """Efron's interval of a mean, by resampling indices."""
    values = np.asarray(differences)
    n, mean = len(values), float(np.mean(differences))
    index = np.random.default_rng(seed).integers(0, n, (draws, n))
    drawn = np.sort(values[index].mean(axis=1))
    bias = NORMAL.inv_cdf(float((drawn < mean).mean() + (drawn == mean).mean() / 2))
    jackknifed = np.array([np.delete(values, i).mean() for i in range(n)])
    moved = jackknifed.mean() - jackknifed
    acceleration = float((moved**3).sum() / (6 * (moved**2).sum() ** 1.5))
    ends = []
    for share in (0.025, 0.975):
        reach = bias + NORMAL.inv_cdf(share)
        at = NORMAL.cdf(bias + reach / (1 - acceleration * reach))
        ends.append(float(drawn[min(draws - 1, int(at * draws))]))
    return ends[0], ends[1]

"""What a condition changes, paired by prompt: intervals, tests, and what it takes to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.condition_reading import ConditionReading, PromptReading
from probe.analyses.measures.needle_cells import MOST_PLACES
from probe.finding import Interval
from probe.intervals import (
    FEWEST_PROMPTS,
    all_agree,
    clopper_pearson,
    cluster_bootstrap,
    mcnemar_exact,
    paired_difference,
    sign_flip,
)
from probe.withheld import Withheld

Floats = NDArray[np.float64]
Pair = tuple[PromptReading, PromptReading]
"""A prompt under a condition, and the same prompt without it."""
Cell = tuple[float, float]
"""A prompt length in tokens, and how deep in the prompt the answer stands, from 0 (first) to 1 (last)."""
At = TypeVar("At", float, Cell)
Quantity = Literal["accuracy", "answer_loss", "text_loss", "seconds"]
POINTS: Final = (-100.0, 100.0)
"""Between what a difference of two shares lies, in percentage points."""


@dataclass(frozen=True)
class Difference:
    """The mean of a quantity with and without a condition, over the prompts that have it both ways."""

    value: float
    """With the condition."""
    before: float
    """Without it."""
    difference: float
    interval: Interval | None
    p: float | None
    n: int

    def within(self, margin: float, bounds: tuple[float, float] | None) -> bool:
        """Return whether the difference lies within `margin` of 0, its interval no narrower than `n` prompts allow."""
        low, high = self.ends(bounds)
        return self.n >= FEWEST_PROMPTS and low >= -margin and high <= margin

    def ends(self, bounds: tuple[float, float] | None) -> tuple[float, float]:
        """Return the interval's ends; no interval is without end, and few prompts that agree make it no surer."""
        if self.interval is None:
            return -math.inf, math.inf
        if bounds is None:
            return self.interval.low, self.interval.high
        low, high = (float(end) for end in all_agree(0.0, self.n, bounds))
        return min(self.interval.low, low), max(self.interval.high, high)


@dataclass(frozen=True)
class Cost:
    """What reading a prompt took with and without a condition, on this machine, captured alike."""

    seconds: float
    """Median over prompts: the first one read warms up."""
    seconds_before: float
    times: float
    """Median over prompts of the time with the condition over that without it."""
    peak_bytes: float
    peak_bytes_before: float
    n: int


@dataclass(frozen=True)
class ConditionEffect:
    """One condition held against none."""

    reading: ConditionReading
    pairs: tuple[Pair, ...]
    accuracy: Difference
    answer_loss: Difference | None
    text_loss: Difference | None
    """Loss of the prompts' own text, where the condition left their tokens as they were."""
    plain_text: Difference | None
    """The same over prompts of another workload that asks nothing."""
    cost: Cost | None
    by_length: Mapping[float, Difference]
    by_depth: Mapping[float, Difference]
    loss_by_length: Mapping[float, Difference]
    loss_by_depth: Mapping[float, Difference]
    by_cell: Mapping[Cell, Difference]
    """Right answers at each length and depth together; see `cells`."""
    loss_by_cell: Mapping[Cell, Difference]

    @property
    def name(self) -> str:
        return self.reading.name


def paired(reading: ConditionReading, before: Mapping[str, PromptReading]) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Return a condition's prompts beside the same without it, and the names of those that only one of them has."""
    names = sorted({*reading.prompts} & {*before})
    lone = sorted({*reading.prompts} ^ {*before})
    return tuple((reading.prompts[name], before[name]) for name in names), tuple(lone)


def difference(pairs: Sequence[Pair], quantity: Quantity, seed: int, *, tested: bool = True) -> Difference | None:
    """Return how a quantity differs over the pairs that have it; None where none has; no p where it is not `tested`.

    Right answers of single readings: McNemar's exact test, with `paired_difference` as the interval. Means over a
    control's draws, and losses: sign-flip permutation test, with the BCa bootstrap over prompts.
    """
    known = [(getattr(a, quantity), getattr(b, quantity), a.prompt) for a, b in pairs]
    known = [each for each in known if math.isfinite(each[0]) and math.isfinite(each[1])]
    if not known:
        return None
    after = np.array([each[0] for each in known])
    before = np.array([each[1] for each in known])
    less = after - before
    interval: Interval | None
    if quantity == "accuracy" and bool(np.isin([after, before], (0.0, 100.0)).all()):
        exact = paired_difference(after > 50, before > 50)
        interval = exact and exact.model_copy(update={"low": 100 * exact.low, "high": 100 * exact.high})
        p = mcnemar_exact(after > 50, before > 50)
    else:
        bounds = POINTS if quantity == "accuracy" else None
        interval = cluster_bootstrap(less, [each[2] for each in known], bounds=bounds, seed=seed)
        p = sign_flip(less, seed=seed) if tested else None
    return Difference(float(after.mean()), float(before.mean()), float(less.mean()), interval, p, len(known))


def share_interval(values: Sequence[float], prompts: Sequence[str], seed: int) -> Interval | None:
    """Return the interval of a share in percent: exact where each prompt is right or wrong, else resampled."""
    if all(value in (0.0, 100.0) for value in values):
        exact = clopper_pearson(sum(value > 50 for value in values), len(values))
        return exact and exact.model_copy(update={"low": 100 * exact.low, "high": 100 * exact.high})
    return cluster_bootstrap(values, prompts, bounds=(0.0, 100.0), seed=seed)


def effect_of(
    reading: ConditionReading,
    before: Mapping[str, PromptReading],
    plain: Sequence[Pair],
    seed: int,
) -> ConditionEffect | None:
    """Return a condition's effect; None where no prompt that asks something is there both ways."""
    pairs, _ = paired(reading, before)
    accuracy = difference(pairs, "accuracy", seed)
    if accuracy is None:
        return None
    same_text, plain = ([(a, b) for a, b in some if _same_text(a, b)] for some in (pairs, plain))
    lengths, depths = by_place(pairs, lambda p: p.length), by_place(pairs, lambda p: p.depth)
    return ConditionEffect(
        reading=reading,
        pairs=pairs,
        accuracy=accuracy,
        answer_loss=difference(pairs, "answer_loss", seed),
        text_loss=difference(same_text, "text_loss", seed, tested=False),
        plain_text=difference(plain, "text_loss", seed, tested=False),
        cost=cost(pairs),
        by_length=_each(lengths, "accuracy", seed),
        by_depth=_each(depths, "accuracy", seed),
        loss_by_length=_each(lengths, "answer_loss", seed),
        loss_by_depth=_each(depths, "answer_loss", seed),
        by_cell=_each(cells(pairs), "accuracy", seed),
        loss_by_cell=_each(cells(pairs), "answer_loss", seed),
    )


def _same_text(one: PromptReading, other: PromptReading) -> bool:
    """Return whether two readings are of the same tokens; where these are withheld that cannot be told."""
    return not isinstance(one.tokens, Withheld) and one.tokens == other.tokens


def by_place(pairs: Sequence[Pair], place: Callable[[PromptReading], At | None]) -> dict[At, list[Pair]]:
    """Return the pairs at each length, at each depth, or at both, in order; those that have none are in none."""
    found: dict[At, list[Pair]] = {}
    for pair in pairs:
        at = place(pair[1])
        if at is not None:
            found.setdefault(at, []).append(pair)
    return {at: found[at] for at in sorted(found)}


def cells(pairs: Sequence[Pair]) -> dict[Cell, list[Pair]]:
    """Return the pairs at each length and depth, in order.

    Empty where all have one length or one depth, which the other tells then, and where `too_many_cells`.
    """
    found = by_place(pairs, lambda p: None if p.depth is None else (float(p.length), p.depth))
    lengths, depths = {at for at, _ in found}, {at for _, at in found}
    return found if min(len(lengths), len(depths)) > 1 and not too_many_cells(lengths, depths) else {}


def too_many_cells(lengths: Collection[float], depths: Collection[float]) -> bool:
    """Return whether lengths and depths both differ, one of them in more than `MOST_PLACES` ways."""
    few, many = sorted((len(lengths), len(depths)))
    return few > 1 and many > MOST_PLACES


def _each(pairs: Mapping[At, Sequence[Pair]], quantity: Quantity, seed: int) -> dict[At, Difference]:
    made = {at: difference(some, quantity, seed, tested=False) for at, some in pairs.items()}
    return {at: each for at, each in made.items() if each is not None}


def cost(pairs: Sequence[Pair]) -> Cost | None:
    """Return what reading took, over the pairs of which it is on record both ways and captured alike."""
    alike = [(a, b) for a, b in pairs if a.captured == b.captured and math.isfinite(a.seconds + b.seconds)]
    if not alike:
        return None

    def largest(values: list[float]) -> float:
        return max((value for value in values if math.isfinite(value)), default=math.nan)

    return Cost(
        seconds=float(np.median([a.seconds for a, _ in alike])),
        seconds_before=float(np.median([b.seconds for _, b in alike])),
        times=float(np.median([a.seconds / b.seconds if b.seconds > 0 else math.nan for a, b in alike])),
        peak_bytes=largest([a.peak_bytes for a, _ in alike]),
        peak_bytes_before=largest([b.peak_bytes for _, b in alike]),
        n=len(alike),
    )

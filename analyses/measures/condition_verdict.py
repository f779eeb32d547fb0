"""Which of several conditions help, hurt or change nothing, and what follows for all of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from probe.analyses.measures.condition_effect import POINTS, ConditionEffect, Difference
from probe.finding import Interval, Verdict
from probe.intervals import FEWEST_PROMPTS, clopper_pearson

By = Literal["accuracy", "answer_loss"]
Judgement = Literal["helps", "hurts", "no different", "cannot be told"]
ORDER: tuple[Judgement, ...] = ("helps", "hurts", "no different", "cannot be told")


@dataclass(frozen=True)
class Judged:
    """A condition with what is said of it."""

    effect: ConditionEffect
    judgement: Judgement
    q: float
    """p of the quantity that is judged by, adjusted over the conditions (Benjamini and Hochberg)."""
    accuracy_q: float
    """The same for right answers."""
    loss_q: float | None
    """The same for answer loss; None where it was not measured."""
    gain: Difference
    """How much better it is than nothing, in the quantity that is judged by: larger is better."""


def gain_of(effect: ConditionEffect, by: By) -> Difference | None:
    """Return the difference in the quantity that is judged by, turned so that larger is better."""
    if by == "accuracy":
        return effect.accuracy
    loss = effect.answer_loss
    if loss is None:
        return None
    ends = loss.interval
    turned = ends and Interval(low=-ends.high, high=-ends.low, level=ends.level, method=ends.method)
    return Difference(loss.value, loss.before, -loss.difference, turned, loss.p, loss.n)


def judge(effects: Sequence[ConditionEffect], by: By, margin: float) -> list[Judged]:
    """Return what is said of each condition, those without the quantity left out."""
    there = [(effect, gain) for effect in effects if (gain := gain_of(effect, by)) is not None]
    adjusted = _adjusted([gain.p for _, gain in there])
    accuracies = _adjusted([effect.accuracy.p for effect, _ in there])
    with_loss = [effect for effect, _ in there if effect.answer_loss is not None]
    losses = dict(
        zip(
            (effect.name for effect in with_loss),
            _adjusted([effect.answer_loss.p for effect in with_loss if effect.answer_loss is not None]),
            strict=True,
        )
    )
    bounds = POINTS if by == "accuracy" else None
    return [
        Judged(effect, _judgement(gain, q, margin, bounds), q, accuracy_q, losses.get(effect.name), gain)
        for (effect, gain), q, accuracy_q in zip(there, adjusted, accuracies, strict=True)
    ]


def verdict_of(judged: Sequence[Judged], by: By, margin: float) -> Verdict:
    """Return the verdict over all that is no control.

    Supported: one helps. Refuted: none does, by more than `margin` with 95 % certainty, though there was something to
    gain.
    """
    cures = [each for each in judged if each.effect.reading.role != "control"]
    if any(each.judgement == "helps" for each in cures):
        return "supported"
    bounds = POINTS if by == "accuracy" else None
    if cures and all(
        each.gain.n >= FEWEST_PROMPTS and each.gain.ends(bounds)[1] <= margin and to_gain(each, by, margin)
        for each in cures
    ):
        return "refuted"
    return "inconclusive"


def to_gain(judged: Judged, by: By, margin: float) -> bool:
    """Return whether without the condition there was more than `margin` to gain, with 97.5 % certainty."""
    if by == "answer_loss":
        return judged.gain.before > margin
    before = [b.accuracy for a, b in judged.effect.pairs if math.isfinite(a.accuracy) and math.isfinite(b.accuracy)]
    ends = clopper_pearson(sum(value > 50 for value in before), len(before))
    return ends is not None and 100 - 100 * ends.high > margin


def might_gain(judged: Judged, by: By, margin: float) -> bool:
    """Return whether there is more than `margin` to gain, going by these prompts alone."""
    before = judged.effect.accuracy.before if by == "accuracy" else judged.gain.before
    return (100 - before if by == "accuracy" else before) > margin


def prompts_needed(judged: Sequence[Judged], margin: float) -> int | None:
    """Return how many prompts would give the widest interval a half-width of `margin`, if they scatter as these do."""
    needed = [
        each.gain.n * ((ends.high - ends.low) / 2 / margin) ** 2
        for each in judged
        if (ends := each.gain.interval) is not None and margin > 0
    ]
    return math.ceil(max(needed)) if needed else None


def _judgement(gain: Difference, q: float, margin: float, bounds: tuple[float, float] | None) -> Judgement:
    ends = gain.interval
    if gain.n >= FEWEST_PROMPTS and ends is not None and q < 0.05 and (ends.low > 0 or ends.high < 0):
        return "helps" if ends.low > 0 else "hurts"
    return "no different" if gain.within(margin, bounds) else "cannot be told"


def _adjusted(values: Sequence[float | None]) -> list[float]:
    known = [1.0 if value is None else value for value in values]
    return [float(q) for q in stats.false_discovery_control(known)] if known else []

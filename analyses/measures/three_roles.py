"""The same question over the whole text, over the gold passage alone, and with the gold left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probe.selection import LeftOut, finite, length

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.storage.trace_store import Trace

LEAST_REST = -24 * math.log(2)
"""Least logarithm of one less a probability that is told from 1 in float32."""


@dataclass(frozen=True)
class Asked:
    """How one question went, in each of the texts that it was asked over."""

    prompt: str
    """Name of the sample."""
    length: int
    """Length of the whole text that was asked for, in tokens."""
    right: bool
    """Whether it is answered rightly over the whole text."""
    right_alone: bool
    """Whether it is over the gold passage alone."""
    right_absent: bool | None
    """Whether it is with the gold left out; None where that was not asked."""
    loss: float | None
    """Loss of the right answer over the whole text, in nats per token."""
    loss_alone: float | None
    """That over the gold alone."""
    loss_absent: float | None
    """That with the gold left out."""
    kl_alone: float | None
    """KL divergence of the gold alone against the whole text, over `right answer` and `any other`, in nats."""

    @property
    def loss_over_alone(self) -> float | None:
        """What the whole text adds to the answer's loss over the gold alone."""
        return None if self.loss is None or self.loss_alone is None else self.loss - self.loss_alone

    @property
    def loss_absent_over(self) -> float | None:
        """What leaving out the gold adds to the answer's loss over the whole text."""
        return None if self.loss is None or self.loss_absent is None else self.loss_absent - self.loss


def asked(cases: Mapping[str, Sequence[tuple[Trace, Outcome]]], left_out: LeftOut) -> list[Asked]:
    """Return the questions that were asked over the whole text and over the gold alone; others are counted.

    `cases` are judged answers by role: `baseline`, `gold_only`, `needle_absent`.
    """
    alone = {trace.sample.name: outcome for trace, outcome in cases["gold_only"]}
    absent = {trace.sample.name: outcome for trace, outcome in cases["needle_absent"]}
    found = []
    for trace, outcome in cases["baseline"]:
        name = trace.sample.name
        if name not in alone:
            left_out.add("never asked over the gold alone")
            continue
        without = absent.get(name)
        found.append(
            Asked(
                prompt=name,
                length=length(trace),
                right=bool(outcome.correct),
                right_alone=bool(alone[name].correct),
                right_absent=None if without is None else bool(without.correct),
                loss=_loss(outcome),
                loss_alone=_loss(alone[name]),
                loss_absent=None if without is None else _loss(without),
                kl_alone=kl_of_the_answer(alone[name].answer_log_probability, outcome.answer_log_probability),
            )
        )
    return found


def flips(prompts: Sequence[Asked]) -> tuple[int, int]:
    """Return how many are right from the gold alone and wrong in the whole text, and how many the other way."""
    lost = sum(each.right_alone and not each.right for each in prompts)
    return lost, sum(each.right and not each.right_alone for each in prompts)


def kl_of_the_answer(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return KL(first ‖ second) over two events, the right answer and any other, in nats; None where it is unknown.

    The arguments are the log-probabilities of the answer's tokens, each given the right ones before it. Where the
    second gives the answer no probability at all and the first does, it is infinite.
    """
    if not first or len(first) != len(second) or any(math.isnan(value) for value in (*first, *second)):
        return None
    (p, rest), (q, other_rest) = _two_events(math.fsum(first)), _two_events(math.fsum(second))
    share = math.exp(p)
    kept = share * (p - q) if share > 0 else 0.0
    return kept + (1 - share) * (rest - other_rest)


def _two_events(log_probability: float) -> tuple[float, float]:
    """Return the logarithms of a probability and of one less it, which is at least what float32 tells from 0."""
    at = min(log_probability, 0.0)
    rest = math.log(-math.expm1(at)) if at < 0 else -math.inf
    return at, max(rest, LEAST_REST)


def _loss(outcome: Outcome) -> float | None:
    return outcome.answer_loss if finite(outcome.answer_loss) else None

"""Whether a recurrent model recalls what it just read, in the whole of a long text and in the text's end alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from probe.analyses.figures.lengths import Rate
from probe.analyses.measures.state_growth import REACHES
from probe.finding import Interval
from probe.intervals import mcnemar_exact, paired_difference, square_and_add
from probe.selection import LeftOut

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.storage.trace_store import Trace


@dataclass(frozen=True)
class Recall:
    """One question: where its answer stood, and how it went."""

    prompt: str
    num_tokens: int
    """Tokens of the prompt."""
    length: int
    """Length that was asked for, in tokens."""
    age: int
    """Tokens from the answer's first in the text to the prompt's last."""
    right: bool
    right_alone: bool | None
    """Whether it is right where all that stands before what is needed is left out; None where that was not asked."""


@dataclass(frozen=True)
class Fall:
    """How much less is recalled beyond the training length than it should be."""

    whole: Rate
    """Recent answers in whole texts of twice the training length or more."""
    known: Rate
    """What it is compared with."""
    paired: bool
    """Whether that is the same texts' ends alone; else it is other texts, within the training length."""
    value: float
    """Share right of what is known, less that of whole texts."""
    interval: Interval
    p_value: float
    """Two-sided: exact McNemar where paired, else Fisher's exact test."""


def recalls(
    cases: Sequence[tuple[Trace, Outcome]], alone: Sequence[tuple[Trace, Outcome]], left_out: LeftOut
) -> list[Recall]:
    """Return a recall for each answered trace whose sample says where its answer stands (span `needle_value`)."""
    right_alone = {trace.sample.name: bool(outcome.correct) for trace, outcome in alone}
    found = []
    for trace, outcome in cases:
        spans = {span.name: span for span in trace.sample.spans}
        if "needle_value" not in spans:
            left_out.add("it is not said where the answer stands")
            continue
        length = trace.sample.facts.get("length")
        found.append(
            Recall(
                prompt=trace.sample.name,
                num_tokens=len(trace.sample),
                length=len(trace.sample) if length is None else int(length),
                age=len(trace.sample) - 1 - spans["needle_value"].start,
                right=bool(outcome.correct),
                right_alone=right_alone.get(trace.sample.name),
            )
        )
    return found


def rate(some: Sequence[Recall]) -> Rate | None:
    """Return the share that is right in whole texts; None of nothing."""
    return Rate(sum(each.right for each in some), len(some)) if some else None


def rate_alone(some: Sequence[Recall]) -> Rate | None:
    """Return the share that is right in the texts' ends alone; None where none was asked."""
    asked = [each.right_alone for each in some if each.right_alone is not None]
    return Rate(sum(asked), len(asked)) if asked else None


def recent(some: Sequence[Recall], trained: int, *, beyond: bool) -> list[Recall]:
    """Return questions no older than the training length, in texts of twice that length or in texts within it."""
    young = [each for each in some if each.age <= trained]
    if beyond:
        return [each for each in young if each.num_tokens >= REACHES * 2 * trained]
    return [each for each in young if each.num_tokens <= trained]


def fall(some: Sequence[Recall], trained: int) -> Fall | None:
    """Compare recent answers in long texts with the same texts' ends alone, or with short texts where none was asked.

    None where there is nothing to compare.
    """
    long = recent(some, trained, beyond=True)
    pairs = [(each.right_alone, each.right) for each in long if each.right_alone is not None]
    if pairs:
        alone, whole = [bool(a) for a, _ in pairs], [b for _, b in pairs]
        interval, p_value = paired_difference(alone, whole), mcnemar_exact(alone, whole)
        assert interval is not None
        assert p_value is not None
        known, here = Rate(sum(alone), len(alone)), Rate(sum(whole), len(whole))
        return Fall(here, known, True, known.share - here.share, interval, p_value)
    known_rate, long_rate = rate(recent(some, trained, beyond=False)), rate(long)
    if known_rate is None or long_rate is None:
        return None
    table = np.array([[each.right, each.n - each.right] for each in (known_rate, long_rate)])
    return Fall(
        whole=long_rate,
        known=known_rate,
        paired=False,
        value=known_rate.share - long_rate.share,
        interval=square_and_add([(1.0, known_rate.right, known_rate.n), (-1.0, long_rate.right, long_rate.n)]),
        p_value=float(stats.fisher_exact(table).pvalue),
    )


def critical_length(some: Sequence[Recall], trained: int, known: Rate) -> tuple[int | None, int, int | None]:
    """Return the shortest length from which on less than half of `known` is recalled of what is recent, with bounds.

    The bounds are the longest length whose exact interval reaches half or more (0 where none does), and the shortest
    from which on every interval lies below half (None where none does).
    """
    young = [each for each in some if each.age <= trained]
    lengths = sorted({each.length for each in young})
    rates = {at: rate([each for each in young if each.length == at]) for at in lengths}
    half = known.share / 2
    value = certain = None
    low = 0
    for at in reversed(lengths):
        here = rates[at]
        assert here is not None
        if here.share >= half:
            break
        value = at
    for at in reversed(lengths):
        here = rates[at]
        assert here is not None
        if here.interval.high >= half:
            low = at
            break
        certain = at
    return value, low, certain

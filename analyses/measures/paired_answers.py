"""The same prompts under two conditions, of one run or of two: what is paired, what is not, and what flipped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from probe.analyses.measures.condition_effect import Difference, Quantity, by_place, difference
from probe.analyses.measures.condition_reading import PromptReading
from probe.storage.trace_store import Run
from probe.storage.unit_answer import UnitAnswer, answers_of

QUANTITIES: Final[Mapping[Quantity, tuple[str, str]]] = {
    "accuracy": ("right answers", "percentage points"),
    "answer_loss": ("loss of the right answer", "nats per token"),
    "text_loss": ("loss of the prompt's own text", "nats per token"),
    "seconds": ("time of reading a prompt", "seconds"),
}
"""What is compared: in words, and the unit of a difference."""

Flip = tuple[Any, ...]
FLIP_COLUMNS: Final = ("sample", "length", "depth", "flip", "right_answer", "A_answers", "B_answers", "text", "A", "B")


@dataclass(frozen=True)
class AnswerPair:
    """One prompt on both sides; several units of a side are the draws of a control."""

    sample: str
    first: tuple[UnitAnswer, ...]
    second: tuple[UnitAnswer, ...]

    @property
    def same_text(self) -> bool:
        """Whether both sides read the very same tokens; where these are withheld that cannot be told."""
        texts = {each.text for each in (*self.first, *self.second)}
        return len(texts) == 1 and "" not in texts


@dataclass(frozen=True)
class PairedAnswers:
    """Two sides, A and B, prompt by prompt."""

    pairs: tuple[AnswerPair, ...]
    only_first: tuple[str, ...]
    """Samples that A has and B has not."""
    only_second: tuple[str, ...]
    other_answer: tuple[str, ...]
    """Samples of one name that ask for another answer on each side: not the same question, and no pair."""
    left_out: tuple[str, ...]
    """Units of either side that failed, or are not what was written, each with the reason."""

    @functools.cached_property
    def rewritten(self) -> int:
        """How many pairs read other tokens on each side, or withhold them."""
        return sum(not pair.same_text for pair in self.pairs)

    def difference(self, quantity: Quantity, *, tested: bool = True) -> Difference | None:
        """Return B less A over the prompts that have it both ways, as `compare_conditions` takes it; None where none.

        Shares of right answers are in percent. Loss of the text is over pairs of the same text; time over pairs of
        which arrays were captured on both sides or on neither.
        """
        return difference(self._read(quantity), quantity, 0, tested=tested)

    def by(self, quantity: Quantity, of: str) -> dict[float, Difference]:
        """Return the same at each `length` in tokens, or at each `depth` of the needle; {} where there is none."""
        place: Callable[[PromptReading], float | None] = _length if of == "length" else _depth
        found = {
            at: difference(some, quantity, 0, tested=False)
            for at, some in by_place(self._read(quantity), place).items()
        }
        return {at: each for at, each in found.items() if each is not None}

    def values(self, quantity: Quantity) -> Iterator[tuple[AnswerPair, float, float]]:
        """Yield each pair with A's number and B's, means over draws; those that have one only are left out."""
        for pair in self._fit(quantity):
            first, second = (getattr(_reading(side), quantity) for side in (pair.first, pair.second))
            if np.isfinite(first) and np.isfinite(second):
                yield pair, first, second

    def flips(self) -> list[Flip]:
        """Return the prompts that are right on one side and wrong on the other, columns as in `FLIP_COLUMNS`.

        Of several draws the share that is right decides, where it differs. `A` and `B` are units of each side.
        """
        return list(self._flips())

    def _flips(self) -> Iterator[Flip]:
        for pair, first, second in self.values("accuracy"):
            if first != second:
                a, b = pair.first[0], pair.second[0]
                said = f"{_right(first)} → {_right(second)}"
                text = "same" if pair.same_text else "another"
                answers = (each.response or "(nothing)" for each in (a, b))
                yield pair.sample, a.length, a.depth, said, a.answer, *answers, text, a.unit, b.unit

    def _fit(self, quantity: Quantity) -> list[AnswerPair]:
        if quantity == "text_loss":
            return [pair for pair in self.pairs if pair.same_text]
        if quantity == "seconds":
            return [pair for pair in self.pairs if len({each.captured for each in (*pair.first, *pair.second)}) == 1]
        return list(self.pairs)

    def _read(self, quantity: Quantity) -> list[tuple[PromptReading, PromptReading]]:
        return [(_reading(pair.second), _reading(pair.first)) for pair in self._fit(quantity)]


def paired_answers(
    first: Run | Iterable[UnitAnswer], condition: str, second: Run | Iterable[UnitAnswer], other: str
) -> PairedAnswers:
    """Pair the prompts of a condition of one run (A) with those of a condition of the same run or another (B).

    A pair has the sample's name and its right answer in common; what has not is counted by name. What several stages
    read alike counts once.
    """
    left_out: list[str] = []
    sides = [_by_sample(answers_of(answers), name, left_out) for answers, name in ((first, condition), (second, other))]
    a, b = sides
    both = sorted({*a} & {*b})
    pairs = [AnswerPair(name, tuple(a[name]), tuple(b[name])) for name in both]
    apart = [p.sample for p in pairs if len({each.answer for each in (*p.first, *p.second)}) > 1]
    return PairedAnswers(
        pairs=tuple(pair for pair in pairs if pair.sample not in set(apart)),
        only_first=tuple(sorted({*a} - {*b})),
        only_second=tuple(sorted({*b} - {*a})),
        other_answer=tuple(apart),
        left_out=tuple(left_out),
    )


def _by_sample(answers: Sequence[UnitAnswer], condition: str, left_out: list[str]) -> dict[str, list[UnitAnswer]]:
    found: dict[str, list[UnitAnswer]] = {}
    seen = set()
    for each in answers:
        key = (each.sample, each.prompt, each.draw)
        if each.condition != condition or key in seen:
            continue
        seen.add(key)
        if each.problem:
            left_out.append(f"{each.sample} under {condition}: {each.problem}")
        else:
            found.setdefault(each.sample, []).append(each)
    return found


def _reading(units: Sequence[UnitAnswer]) -> PromptReading:
    def mean(values: Iterable[float | None]) -> float:
        known = [float(value) for value in values if value is not None]
        return float(np.mean(known)) if known else np.nan

    return PromptReading(
        prompt=units[0].sample,
        length=units[0].length,
        depth=units[0].depth,
        tokens=units[0].text,
        accuracy=mean(None if each.correct is None else 100.0 * each.correct for each in units),
        answer_loss=mean(each.answer_loss for each in units),
        text_loss=mean(each.text_loss for each in units),
        seconds=mean(each.seconds for each in units),
        peak_bytes=max((float(each.peak_bytes) for each in units if each.peak_bytes is not None), default=np.nan),
        captured=units[0].captured,
        traces=(),
    )


def _length(reading: PromptReading) -> float:
    return float(reading.length)


def _depth(reading: PromptReading) -> float | None:
    return None if reading.depth is None else round(reading.depth, 3)


def _right(share: float) -> str:
    return {0.0: "wrong", 100.0: "right"}.get(share, f"{share:.0f} % of draws right")

"""How often an answer is right by how many tokens ago it was read, in classes twice as old as the one before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from probe.finding import Interval
from probe.intervals import clopper_pearson
from probe.storage.unit_answer import UnitAnswer


@dataclass(frozen=True)
class AgeClass:
    """The answers of one length that are at least `first` and fewer than twice `first` tokens old."""

    length: int
    first: int
    right: int
    n: int
    interval: Interval

    @property
    def share(self) -> float:
        return self.right / self.n


def age_classes(answers: Iterable[UnitAnswer], condition: str) -> list[AgeClass]:
    """Return the classes of a condition by length and age; units that failed or say no age are in none.

    A prompt that several stages read alike counts once. The classes are this toolkit's own.
    """
    counts: dict[tuple[int, int], list[bool]] = {}
    seen = set()
    for each in answers:
        key = (each.sample, each.prompt, each.draw)
        if each.condition != condition or each.problem or each.age is None or each.correct is None or key in seen:
            continue
        seen.add(key)
        first = 1 << (max(each.age, 1).bit_length() - 1)
        counts.setdefault((each.length, first), []).append(each.correct)
    found = []
    for (length, first), right in sorted(counts.items()):
        interval = clopper_pearson(sum(right), len(right))
        assert interval is not None
        found.append(AgeClass(length, first, sum(right), len(right), interval))
    return found

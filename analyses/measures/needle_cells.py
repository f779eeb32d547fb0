"""How often the answer was right, and how surprising it was, for each prompt length and each place of the needle."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from probe.finding import Interval
from probe.intervals import FEWEST_PROMPTS, clopper_pearson, cluster_bootstrap, paired_difference
from probe.storage.unit_answer import UnitAnswer

By = Literal["accuracy", "loss", "text"]
"""The share of right answers, the mean answer loss, or the mean loss of the prompt itself, in nats per token."""

MOST_PLACES: Final = 24
"""Lengths and depths that stay as they are; more are rounded, lengths to powers of two, depths to tenths."""

Place = tuple[int, float | None]
"""Length in tokens and depth of the needle; None where the sample does not say."""


@dataclass(frozen=True)
class Cell:
    """All prompts of one length whose needle stands at one depth, under one condition."""

    length: int
    depth: float | None
    num_prompts: int
    """Prompts with a number; draws of a control over the same prompt are averaged first."""
    num_units: int
    num_right: int | None
    """Units that are right, None where nothing was judged."""
    value: float
    """Mean over prompts."""
    interval: Interval | None
    """Clopper-Pearson's for one right or wrong a prompt, else a bootstrap over prompts; None below five prompts."""
    num_pairs: int = 0
    """Prompts that the other condition has too."""
    difference: float | None = None
    """The value less that of the other condition, over these pairs."""
    difference_interval: Interval | None = None


@dataclass(frozen=True)
class Places:
    """The lengths and depths of a run: as they are, or rounded where there are too many to show."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    rounds_lengths: bool
    rounds_depths: bool

    @classmethod
    def of(cls, answers: Iterable[UnitAnswer], conditions: Collection[str] | None = None) -> Places:
        """Return the places of these conditions' answers, or of all; what counts in no number is left out.

        Whether they are rounded goes by all answers, so that every condition's cells are the same.
        """
        known = [answer for answer in answers if not answer.problem]
        lengths = {answer.length for answer in known}
        depths = {round(answer.depth, 3) for answer in known if answer.depth is not None}
        whole = cls((), (), len(lengths) > MOST_PLACES, len(depths) > MOST_PLACES)
        places = [whole.place(each) for each in known if conditions is None or each.condition in conditions]
        return cls(
            tuple(sorted({at for at, _ in places})),
            tuple(sorted({depth for _, depth in places if depth is not None})),
            whole.rounds_lengths,
            whole.rounds_depths,
        )

    def place(self, answer: UnitAnswer) -> Place:
        """Return where an answer belongs."""
        at = 2 ** round(math.log2(max(answer.length, 1))) if self.rounds_lengths else answer.length
        depth = answer.depth
        return at, None if depth is None else round(depth, 1 if self.rounds_depths else 3)


def needle_cells(
    answers: Sequence[UnitAnswer],
    condition: str,
    *,
    by: By = "accuracy",
    against: str | None = None,
    places: Places | None = None,
) -> list[Cell]:
    """Return the cells of a condition, shortest and shallowest first; with `against` the differences from another.

    Differences are over the prompts that both have, paired by the sample's name. A unit that failed or was not judged
    is in none. The grid and its pairing are this toolkit's own; the intervals' sources stand in `probe.intervals`.
    """
    places = Places.of(answers) if places is None else places
    here = _by_prompt(answers, condition, by, places)
    there = {} if against is None else _by_prompt(answers, against, by, places)
    cells = []
    for place, prompts in sorted(here.items(), key=lambda item: (item[0][0], item[0][1] or 0.0)):
        values = _values(prompts, by)
        units = [each for some in prompts.values() for each in some]
        known = [each.correct for each in units if each.correct is not None]
        num_pairs, difference, interval = _difference(values, _values(there.get(place, {}), by), by)
        cells.append(
            Cell(
                length=place[0],
                depth=place[1],
                num_prompts=len(prompts),
                num_units=len(units),
                num_right=sum(known) if known else None,
                value=float(np.mean([np.mean(each) for each in values.values()])),
                interval=_interval(values, by),
                num_pairs=num_pairs,
                difference=difference,
                difference_interval=interval,
            )
        )
    return cells


def samples_at(answers: Iterable[UnitAnswer], condition: str, place: Place, places: Places) -> list[UnitAnswer]:
    """Return the units of one cell, those that failed among them where it is known what they read."""
    return [each for each in answers if each.condition == condition and each.prompt and places.place(each) == place]


@dataclass(frozen=True)
class ConditionTotal:
    """All units of a condition, whatever their length and depth."""

    condition: str
    roles: tuple[str, ...]
    stages: tuple[str, ...]
    num_units: int
    num_left_out: int
    """Units that failed or are not what was written."""
    share_right: float | None
    """Over units; None where nothing was judged."""
    answer_loss: float | None
    """Mean over units, in nats per token; None where no unit has one."""


def condition_totals(answers: Iterable[UnitAnswer]) -> list[ConditionTotal]:
    """Return every condition in the order in which they were read."""
    groups: dict[str, list[UnitAnswer]] = {}
    for each in answers:
        groups.setdefault(each.condition, []).append(each)
    totals = []
    for condition, units in groups.items():
        right = [value for each in units if (value := _value(each, "accuracy")) is not None]
        losses = [value for each in units if (value := _value(each, "loss")) is not None]
        totals.append(
            ConditionTotal(
                condition=condition,
                roles=tuple(dict.fromkeys(each.role for each in units)),
                stages=tuple(dict.fromkeys(each.stage for each in units)),
                num_units=len(units),
                num_left_out=sum(bool(each.problem) for each in units),
                share_right=float(np.mean(right)) if right else None,
                answer_loss=float(np.mean(losses)) if losses else None,
            )
        )
    return totals


_Units = Mapping[str, Sequence[UnitAnswer]]
_Values = Mapping[str, Sequence[float]]


def _by_prompt(
    answers: Iterable[UnitAnswer], condition: str, by: By, places: Places
) -> dict[Place, dict[str, list[UnitAnswer]]]:
    """Return the units with a number of a condition by place and sample, what several stages read alike once."""
    found: dict[Place, dict[str, list[UnitAnswer]]] = {}
    seen = set()
    for each in answers:
        key = (each.sample, each.prompt, each.draw)
        if each.condition == condition and _value(each, by) is not None and key not in seen:
            seen.add(key)
            found.setdefault(places.place(each), {}).setdefault(each.sample, []).append(each)
    return found


def _values(prompts: _Units, by: By) -> dict[str, list[float]]:
    return {name: [value for each in some if (value := _value(each, by)) is not None] for name, some in prompts.items()}


def _value(answer: UnitAnswer, by: By) -> float | None:
    if answer.problem:
        return None
    if by != "accuracy":
        return answer.answer_loss if by == "loss" else answer.text_loss
    return None if answer.correct is None else float(answer.correct)


def _interval(prompts: _Values, by: By) -> Interval | None:
    if by == "accuracy" and all(len(values) == 1 for values in prompts.values()):
        return clopper_pearson(int(sum(values[0] for values in prompts.values())), len(prompts))
    return _bootstrap(prompts, (0.0, 1.0) if by == "accuracy" else None)


def _difference(here: _Values, there: _Values, by: By) -> tuple[int, float | None, Interval | None]:
    both = sorted(set(here) & set(there))
    if not both:
        return 0, None, None
    first, second = ([float(np.mean(side[name])) for name in both] for side in (here, there))
    value = float(np.mean(first) - np.mean(second))
    single = all(len(side[name]) == 1 for side in (here, there) for name in both)
    if by == "accuracy" and single:
        return len(both), value, paired_difference(first, second)
    apart = {name: [a - b] for name, a, b in zip(both, first, second, strict=True)}
    return len(both), value, _bootstrap(apart, (-1.0, 1.0) if by == "accuracy" else None)


def _bootstrap(prompts: _Values, bounds: tuple[float, float] | None) -> Interval | None:
    if len(prompts) < FEWEST_PROMPTS:
        return None
    pairs = [(value, name) for name, values in prompts.items() for value in values]
    return cluster_bootstrap([value for value, _ in pairs], [name for _, name in pairs], bounds=bounds)

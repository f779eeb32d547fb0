"""A chain of keys through a JSON object, each value being the next key."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

from probe.sample import Sample
from probe.success import SuccessRule
from probe.workloads.filling import among
from probe.workloads.fitting import fit, within
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import MarkedText
from probe.workloads.names import Drawn, Kind, kind_for, values
from probe.workloads.stretches import Stretch, stretch, written

_QUESTION = (
    "Each value in the JSON object may itself be one of its keys. Begin with the key below, go from its value to the "
    "key that equals it, and so on until a value is no key. Extract that last value.\n"
    'Key: "{key}"\nCorresponding value:'
)


@dataclass(frozen=True)
class needle_threading(Grid):
    """Needle threading: follow a chain of keys and values through a JSON object of UUID pairs to its last value.

    After Roberts et al. 2024 (Needle Threading, arXiv 2411.05000): single and multiple threads, forward and backward.
    What differs: the instruction is this toolkit's (the paper's repository gives the one for a single needle alone),
    lengths are tokens and not characters. An answer is right if it begins with the last value, as in the paper.
    """

    success_rule: SuccessRule = "exact"
    """`exact` (the paper's prefix match), or `substring`."""
    steps: tuple[int, ...] = (2, 4)
    """Pairs of the thread, which is its length; 1 is a single needle."""
    direction: Literal["forward", "backward", "random"] = "forward"
    """`forward`: every pair stands after the one that leads to it; `backward`: before it."""
    threads: int = 1
    """Threads of that length in the object; one of them is asked for."""
    kind: Kind | None = None
    """What keys and values are: `uuids` as the paper has them, `numbers` (7 digits) or `words`. None: numbers below 512
    tokens, which hold too few UUIDs, else UUIDs."""
    given: Literal["all", "gold_only"] = "all"
    """`gold_only` leaves out every pair that is not of the thread asked for."""

    def check(self) -> None:
        if not self.steps or min(self.steps) < 1 or self.threads < 1:
            raise self.error(f"steps and threads must be 1 or more, not {list(self.steps)} and {self.threads}")

    def axes(self) -> dict[str, tuple[float | int | str, ...]]:
        return {"steps": self.steps}

    def cue(self) -> str:
        return "Corresponding value:"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        steps = int(cell.value("steps"))
        rng = self.rng(cell, "threads")
        kind = kind_for(self.kind, cell.length)
        keys = values(rng, kind)
        hidden: list[tuple[float, Stretch]] = []
        asked = keys.first((steps + 1) * self.threads)
        for thread in range(1 if self.given == "gold_only" else self.threads):
            pairs = _thread(asked[thread * (steps + 1) : (thread + 1) * (steps + 1)], thread)
            if self.direction == "backward":
                pairs.reverse()
            elif self.direction == "random":
                rng.shuffle(pairs)
            hidden += zip(sorted(rng.random() for _ in pairs), pairs, strict=True)
        others = Drawn(_pairs(values(self.rng(cell, "others"), kind, without=frozenset(asked))))

        def compose(count: int) -> MarkedText:
            context = stretch("context", "{", *among(others.first(count), hidden, ",\n "), "}")
            return written(context, "\n", stretch("question", _QUESTION.format(key=asked[0])))

        what = f"{self.name}: the question with {len(hidden)} pairs of its threads"
        if self.given == "gold_only":
            count, text = 0, within(compose(0), cell.length, tokenizer, what=what)
        else:
            count, text = fit(compose, cell.length, tokenizer, what=what)
        last = asked[steps]
        facts = {"given": self.given, "kind": kind, "direction": self.direction, "threads": self.threads,
                 "num_pairs": count + len(hidden)}  # fmt: skip
        return self.made(cell, text, tokenizer, answer=f' "{last}', accepted=(last,), facts=facts)


def _thread(keys: list[str], thread: int) -> list[Stretch]:
    """Return the pairs of a thread in its order; of the one that is asked for, the last is the needle."""
    pairs = []
    for at, (key, value) in enumerate(itertools.pairwise(keys)):
        if thread:
            pairs.append(stretch(f"distractor_{thread - 1}_{at}", f'"{key}": "{value}"'))
        elif at < len(keys) - 2:
            pairs.append(stretch(f"step_{at}", f'"{key}": "{value}"'))
        else:
            pairs.append(stretch("needle", f'"{key}": ', stretch("needle_value", f'"{value}'), '"'))
    return pairs


def _pairs(drawn: Drawn) -> Any:
    found = iter(drawn)
    return (f'"{key}": "{value}"' for key, value in zip(found, found, strict=False))

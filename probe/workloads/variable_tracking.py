"""Variables assigned to one another, and a value whose every name is asked for."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import Any, Literal

from probe.sample import Sample
from probe.success import SuccessRule
from probe.workloads.filling import among, check_filler, filler
from probe.workloads.fitting import fit, within
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import MarkedText
from probe.workloads.names import Drawn, values
from probe.workloads.stretches import Stretch, stretch, written

_INSTRUCTION = "Memorize and track the chain(s) of variable assignment hidden in the following text."
# The misspelling is the published prompt's own.
_QUESTION = (
    "Question: Find all variables that are assigned the value {value} in the text above. Answer: According to the "
    "chain(s) of variable assignment in the text above, {number} variables are assgined the value {value}, they are:"
)
_LETTERS = 5


@dataclass(frozen=True)
class variable_tracking(Grid):
    """Variable tracking: `VAR A = 12345`, `VAR B = VAR A` and so on, hidden in a text; every name of 12345 is asked.

    Prompt, chain and scoring of Hsieh et al. 2024 (RULER, arXiv 2404.06654): one chain of four hops in noise. What
    differs: no solved example stands before the text, each assignment has a line of its own, and what is decoded are
    the answer's tokens and 16 more (RULER: 30).
    """

    success_rule: SuccessRule = "all"
    """`all` as RULER has it (the score is the share of the variables found)."""
    chains: int = 1
    """Chains in the text; one of them is asked for."""
    hops: int | None = None
    """Assignments from variable to variable in each chain, after the one of the value. None: 4 as RULER has them, or 2
    below 256 tokens."""
    haystack: str = "noise"
    """`noise` as RULER has it, `templates`, or the path of a UTF-8 text file."""
    given: Literal["all", "gold_only", "gold_absent"] = "all"
    """`gold_only` leaves out all but the chain that is asked for, `gold_absent` that chain."""

    def check(self) -> None:
        if self.chains < 1 or (self.hops is not None and self.hops < 0):
            raise self.error(f"chains must be 1 or more and hops 0 or more, not {self.chains} and {self.hops}")

    def prepare(self, tokenizer: Any) -> None:
        check_filler(self.haystack)

    def cue(self) -> str:
        return "Answer:"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        rng = self.rng(cell, "chains")
        hops = (2 if cell.length < 256 else 4) if self.hops is None else self.hops
        each = hops + 1
        names = _variables(rng).first(each * self.chains)
        numbers = values(rng, "numbers", digits=5).first(self.chains)
        hidden: list[tuple[float, Stretch]] = []
        for chain in range(self.chains):
            shares = sorted(rng.random() for _ in range(each))
            said = _chain(names[chain * each : (chain + 1) * each], numbers[chain], chain)
            if (chain == 0 and self.given != "gold_absent") or (chain and self.given != "gold_only"):
                hidden += zip(shares, said, strict=True)
        hay = filler(self.haystack, self.rng(cell, "haystack"))

        def compose(count: int) -> MarkedText:
            question = stretch("question", _QUESTION.format(value=numbers[0], number=each))
            context = among(hay.first(count), hidden, "\n")
            return written(stretch("instruction", _INSTRUCTION), "\n\n", *context, "\n", question)

        what = f"{self.name}: the question with {len(hidden)} assignments"
        if self.given == "gold_only":
            count, text = 0, within(compose(0), cell.length, tokenizer, what=what)
        else:
            count, text = fit(compose, cell.length, tokenizer, what=what)
        asked = tuple(names[:each])
        facts = {"given": self.given, "chains": self.chains, "hops": hops, "haystack_sentences": count}
        return self.made(cell, text, tokenizer, answer=f" {', '.join(asked)}", accepted=asked, facts=facts)


def _variables(rng: random.Random) -> Drawn:
    """Draw names of five capitals without end; two of one chain could hardly be alike, and none twice is."""
    seen: set[str] = set()

    def drawn() -> Any:
        while True:
            name = "".join(rng.choices(string.ascii_uppercase, k=_LETTERS))
            if name not in seen:
                seen.add(name)
                yield name

    return Drawn(drawn())


def _chain(names: list[str], number: str, chain: int) -> list[Stretch]:
    """Return the assignments of a chain in their order; those of the chain that is asked for are needles."""
    sources = [number, *(f"VAR {name}" for name in names[:-1])]
    if chain:
        return [
            stretch(f"distractor_{chain - 1}_{at}", f"VAR {name} = {source}")
            for at, (name, source) in enumerate(zip(names, sources, strict=True))
        ]
    return [
        stretch(f"needle_{at}", "VAR ", stretch(f"needle_value_{at}", name), f" = {source}")
        for at, (name, source) in enumerate(zip(names, sources, strict=True))
    ]

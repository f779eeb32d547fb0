"""Who the eldest relative is, traced through shuffled sentences about parents."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final, Literal

from probe.sample import Sample
from probe.success import SuccessRule
from probe.workloads.filling import among, check_filler, filler
from probe.workloads.fitting import fit, within
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import MarkedText
from probe.workloads.names import people
from probe.workloads.stretches import Stretch, stretch, written

RELATIVES: Final[tuple[str, ...]] = (
    "father",
    "mother",
    "dad",
    "mom",
    "grandfather",
    "grandmother",
    "maternal grandmother",
    "maternal grandfather",
    "paternal grandfather",
    "paternal grandmother",
)
"""What an elder may be to the younger."""
_SENTENCES = (
    "{elder} is {younger}'s {relative}.",
    "{younger}'s {relative} is {elder}.",
    "{elder}, as {younger}'s {relative}, has a significant impact on {younger}'s upbringing.",
    "{elder} is not only {younger}'s {relative} but also {younger}'s role model.",
    "{younger} is the child of {elder}.",
    "For {younger}, {elder} is not just a {relative}, but also a friend.",
)
_INSTRUCTION = "Read about the relatives of these people; a name says nothing of who is older."
_QUESTION = (
    "Given the scrambled family relationships described above, who is the eldest relative that '{name}' can trace back "
    "to in the context?\nAnswer:"
)
_MOST_MARKED = 64


@dataclass(frozen=True)
class ancestral_trace(Grid):
    """Ancestral trace challenge: n names, n − 1 shuffled sentences that each make one the elder of another.

    After Li et al. 2024 (NeedleBench, arXiv 2407.11963): relatives, sentences and the question are those of the
    authors' code in OpenCompass. What differs: the instruction is short and this toolkit's (the authors' has examples
    and asks for `\\boxed{}`), the answer is looked for in the response (theirs: must equal it), names are invented.
    With `people` and a haystack it is their multi-needle reasoning.
    """

    success_rule: SuccessRule = "substring"
    """`substring`, or `exact`."""
    people: int | None = None
    """How many names there are. None: as many as the length holds, without a haystack."""
    haystack: str = "templates"
    """What surrounds the sentences where `people` is stated: `templates`, `noise`, or the path of a UTF-8 text file."""
    order: Literal["shuffled", "forward", "backward"] = "shuffled"
    """Order of the sentences: `forward` begins with the person asked about, `backward` with the eldest."""

    def check(self) -> None:
        if self.people is not None and self.people < 2:
            raise self.error(f"people must be 2 or more, not {self.people}")

    def prepare(self, tokenizer: Any) -> None:
        if self.people is not None:
            check_filler(self.haystack)

    def cue(self) -> str:
        return "Answer:"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        names = people(self.rng(cell, "names"))
        hay = filler(self.haystack, self.rng(cell, "haystack")) if self.people is not None else None

        def compose(count: int) -> MarkedText:
            relations = count if self.people is None else self.people - 1
            chain = names.first(relations + 1)
            shown = among(hay.first(count) if hay else [], self._sentences(cell, chain))
            question = stretch("question", _QUESTION.format(name=chain[-1]))
            return written(stretch("instruction", _INSTRUCTION), "\n\n", *shown, "\n\n", question)

        if self.people is None:
            what = f"{self.name}: the question with one sentence"
            count, text = fit(compose, cell.length, tokenizer, what=what, least=1)
            relations = count
        else:
            what = f"{self.name}: the question with {self.people} people"
            within(compose(0), cell.length, tokenizer, what=what)
            count, text = fit(compose, cell.length, tokenizer, what=what)
            relations = self.people - 1
        (eldest,) = names.first(1)
        facts = {"num_people": relations + 1, "order": self.order}
        return self.made(cell, text, tokenizer, answer=f" {eldest}", accepted=(eldest,), facts=facts)

    def _sentences(self, cell: Cell, chain: list[str]) -> list[tuple[float, str | Stretch]]:
        """Return the sentence of each two neighbours, with its place; `chain` begins with the eldest.

        `needle` names the eldest, `step_0` is the first from the person asked about. Of a long chain only the first
        steps are marked, since every span costs room in a trace.
        """
        rng = self.rng(cell, "sentences")
        said: list[tuple[float, str | Stretch]] = []
        for at, (elder, younger) in enumerate(itertools.pairwise(chain)):
            place, form, relative = rng.random(), rng.choice(_SENTENCES), rng.choice(RELATIVES)
            form = form.replace("{younger}", younger).replace("{relative}", relative)
            before, _, after = form.partition("{elder}")
            step = len(chain) - 2 - at
            if at == 0:
                value = stretch("needle_value", elder)
                said.append((place, stretch("needle", before, value, after.replace("{elder}", elder))))
            elif step < _MOST_MARKED:
                said.append((place, stretch(f"step_{step}", form.replace("{elder}", elder))))
            else:
                said.append((place, form.replace("{elder}", elder)))
        if self.order == "shuffled":
            return said
        places = sorted(place for place, _ in said)
        ordered = [each for _, each in (said if self.order == "backward" else reversed(said))]
        return list(zip(places, ordered, strict=True))

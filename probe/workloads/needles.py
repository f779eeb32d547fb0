"""Several needles, several values of one, several questions at once."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

from probe.sample import Sample
from probe.success import SuccessRule
from probe.workloads.filling import among, check_filler, filler
from probe.workloads.fitting import fit, within
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import MarkedText
from probe.workloads.names import Drawn, Kind, values
from probe.workloads.stretches import Stretch, stretch, written

_PLACES = 40
_NEEDLE = "One of the special magic {what} for {key} is: "
_BEFORE = {
    1: "A special magic {one} is hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the {one} afterwards.",
    2: "Some special magic {many} are hidden within the following text. Make sure to memorize it. I will quiz you "
    "about the {many} afterwards.",
}
_QUESTION = {
    1: "What is the special magic {one} for {query} mentioned in the provided text? The special magic {one} for "
    "{query} mentioned in the provided text is",
    2: "What are all the special magic {many} for {query} mentioned in the provided text? The special magic {many} "
    "for {query} mentioned in the provided text are",
}


@dataclass(frozen=True)
class needles(Grid):
    """Needles of several keys, several values of a key, and several keys asked for at once, as in RULER.

    Prompts and scoring are those of Hsieh et al. 2024 (RULER, arXiv 2404.06654): multi-key (the default), multi-value
    (`values: 4`), multi-query (`queries: 4`), line retrieval (`haystack: needles`). What differs: the haystack is of
    this toolkit's templates, where RULER has Paul Graham's essays (a file of yours serves too); keys are words of
    another list; what is decoded are the answer's tokens and 16 more (RULER: 128).
    """

    success_rule: SuccessRule = "all"
    """`all` as RULER has it (the score is the share of the values found)."""
    keys: int | None = None
    """Different keys in the text, those that are asked for among them. None: 4 as RULER has them, or 2 below 256
    tokens; never fewer than are asked for."""
    values: int = 1
    """Values of each key, each in a needle of its own."""
    queries: int = 1
    """How many keys are asked for at once."""
    depths: tuple[float, ...] = ()
    """Place of the needle, where only one is asked for; none: drawn, as those of the others are."""
    key_kind: Kind = "words"
    """What keys are: `words`, `numbers` or `uuids`."""
    value_kind: Kind = "numbers"
    """What values are: `numbers` (7 digits), `words` or `uuids`."""
    haystack: str = "templates"
    """`templates`, `noise`, `needles` (as many more needles as fit), or the path of a UTF-8 text file."""
    given: Literal["all", "gold_only", "gold_absent"] = "all"
    """`gold_only` leaves out all but the needles that are asked for, `gold_absent` leaves those out."""

    def check(self) -> None:
        keys = self.queries if self.keys is None else self.keys
        if min(keys, self.values, self.queries) < 1 or self.queries > keys:
            raise self.error("keys, values and queries must be 1 or more, and no more keys asked for than there are")
        if self.depths:
            self.check_shares("depths", self.depths)
            if self.values * self.queries > 1:
                raise self.error("depths place one needle, and several are asked for; leave them out")

    def axes(self) -> dict[str, tuple[float | int | str, ...]]:
        return {"needle_depth": tuple(map(float, self.depths))} if self.depths else {}

    def prepare(self, tokenizer: Any) -> None:
        if self.haystack != "needles":
            check_filler(self.haystack)

    def cue(self) -> str:
        return "The special magic"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        rng = self.rng(cell, "needles")
        number = self.keys or max(self.queries, 2 if cell.length < 256 else 4)
        keys = values(rng, self.key_kind).first(number)
        drawn = values(rng, self.value_kind).first(number * self.values)
        shares = _shares(rng, number, self.values)
        if self.depths:
            shares[0] = cell.value("needle_depth")
        asked = drawn[: self.queries * self.values]
        gold, others = self._stretches(keys, drawn)
        hidden: list[tuple[float, str | Stretch]] = []
        if self.given != "gold_absent":
            hidden += zip(shares, gold, strict=False)
        if self.given != "gold_only":
            hidden += zip(shares[len(gold) :], others, strict=True)
        hay = self._hay(cell, {*keys, *drawn})

        def compose(count: int) -> MarkedText:
            between = "\n" if self.haystack in ("noise", "needles") else " "
            context = among(hay.first(count), hidden, between)
            plural = 1 if len(asked) == 1 else 2
            words = {"many": self.value_kind, "one": self.value_kind[:-1], "query": _listed(keys[: self.queries])}
            before = stretch("instruction", _BEFORE[plural].format(**words))
            question = stretch("question", _QUESTION[plural].format(**words))
            return written(before, "\n", *context, "\n", question)

        what = f"{self.name}: the question with {len(hidden)} needles"
        if self.given == "gold_only":
            count, text = 0, within(compose(0), cell.length, tokenizer, what=what)
        else:
            count, text = fit(compose, cell.length, tokenizer, what=what)
        facts: dict[str, Any] = {
            "given": self.given,
            "num_needles": len(hidden),
            "num_answers": len(asked),
            "haystack_sentences": count,
        }
        if len(asked) == 1 and not self.depths:
            facts |= {"needle_depth": round(shares[0], 4)}
        return self.made(cell, text, tokenizer, answer=f" {', '.join(asked)}", accepted=tuple(asked), facts=facts)

    def _stretches(self, keys: list[str], drawn: list[str]) -> tuple[list[Stretch], list[Stretch]]:
        """Return the needles that are asked for and the others."""
        gold: list[Stretch] = []
        others: list[Stretch] = []
        for index, value in enumerate(drawn):
            key = keys[index // self.values]
            said = _NEEDLE.format(what=self.value_kind, key=key)
            if index >= self.queries * self.values:
                others.append(stretch(f"distractor_{len(others)}", said, value, "."))
                continue
            at = "" if self.queries * self.values == 1 else f"_{index}"
            gold.append(stretch(f"needle{at}", said, stretch(f"needle_value{at}", value), "."))
        return gold, others

    def _hay(self, cell: Cell, used: set[str]) -> Drawn:
        rng = self.rng(cell, "haystack")
        if self.haystack != "needles":
            return filler(self.haystack, rng)
        keys, drawn = values(rng, self.key_kind, without=used), values(rng, self.value_kind, without=used)
        return Drawn(
            _NEEDLE.format(what=self.value_kind, key=key) + value + "." for key, value in zip(keys, drawn, strict=False)
        )


def _shares(rng: random.Random, keys: int, each: int) -> list[float]:
    """Draw places without replacement from 40 evenly spaced ones, as RULER does; for more needles from anywhere.

    The values of one key stand in the text in the order in which the answer lists them.
    """
    count = keys * each
    if count > _PLACES:
        drawn = [rng.random() for _ in range(count)]
    else:
        drawn = [place / (_PLACES - 1) for place in rng.sample(range(_PLACES), count)]
    return [share for key in range(keys) for share in sorted(drawn[key * each : (key + 1) * each])]


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, and {words[-1]}"

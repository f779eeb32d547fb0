"""The same question over two facts, with more and more padding."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from probe.sample import Sample
from probe.workloads.filling import among, check_filler, filler
from probe.workloads.fitting import fit
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import MarkedText
from probe.workloads.names import Drawn, people
from probe.workloads.stretches import Stretch, stretch, written

_RELATIONS = (
    ("older", "younger"),
    ("taller", "shorter"),
    ("faster", "slower"),
    ("stronger", "weaker"),
    ("richer", "poorer"),
    ("louder", "quieter"),
)
_ABOUT = (
    "{name} lives near the {place} and works as a {person}.",
    "On most days {name} is seen at the {place} with a {thing}.",
    "{name} has a {animal} and likes {food}.",
    "Everybody at the {place} knows {name}, who once repaired the {thing} there.",
)
_KINDS = ("duplicate", "similar", "different")
_PLACES = ("market", "harbour", "bridge", "station", "library", "mill", "church", "school", "forest", "bakery")
_PEOPLE = ("baker", "teacher", "doctor", "painter", "sailor", "gardener", "tailor", "miller", "nurse", "mason")
_THINGS = ("basket", "letter", "lantern", "bicycle", "ladder", "kettle", "map", "umbrella", "clock", "violin")
_ANIMALS = ("dog", "cat", "horse", "goose", "goat", "hen")
_FOODS = ("bread", "soup", "cheese", "tea", "honey", "fish", "rice", "cake")


@dataclass(frozen=True)
class padded_question(Grid):
    """One question over two facts, the same at every length, with padding of several kinds and the facts in any place.

    After Levy et al. 2024 (Same Task, More Tokens: FLenQA, arXiv 2402.14848), its MonoRel task and prompt: A is older
    than B, B is older than C; is A older than C? What differs: people and paragraphs are made from templates, two
    sentences each (the paper: about 125 tokens), places and distance are numbers where the paper has first, middle,
    last and random, the prompt ends in `Answer:`, and an answer is right if the response begins with it (the paper: the
    last true or false in it). True and false are asked equally often.
    """

    padding: tuple[str, ...] = ("different",)
    """Kinds of padding: `duplicate` (the two paragraphs again), `similar` (paragraphs about other people), `different`
    (sentences of this toolkit's templates), or the path of a UTF-8 text file."""
    depths: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Share of the padding, less what stands between the facts, before the first fact."""
    distances: tuple[float, ...] = (0.0,)
    """Share of the padding that stands between the two facts."""

    def check(self) -> None:
        self.check_shares("depths", self.depths)
        self.check_shares("distances", self.distances)
        if not self.padding or not all(self.padding):
            raise self.error("padding must name at least one kind")

    def axes(self) -> dict[str, tuple[float | int | str, ...]]:
        return {
            "padding": self.padding,
            "needle_depth": tuple(map(float, self.depths)),
            "distance": tuple(map(float, self.distances)),
        }

    def files(self) -> dict[str, str]:
        return {f"padding {kind}": kind for kind in self.padding if kind not in _KINDS}

    def prepare(self, tokenizer: Any) -> None:
        for kind in self.padding:
            if kind not in _KINDS:
                check_filler(kind)

    def cue(self) -> str:
        return "Answer:"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        # Neither the length nor the padding decides the question: that is what is held fixed.
        rng = random.Random(f"{self.seed}/{self.name}/s{cell.seed}/question")
        names = people(rng)
        first, second, third = names.first(3)
        more, _ = rng.choice(_RELATIONS)
        true = (cell.seed // 2) % 2 == 0
        asked = f"Is {first} {more} than {third}?" if true else f"Is {third} {more} than {first}?"
        paragraphs = [_paragraph(rng, first, second, more), _paragraph(rng, second, third, more)]
        padding = self._padding(cell, paragraphs, names)
        distance, depth = float(cell.value("distance")), float(cell.value("needle_depth"))
        start = depth * (1 - distance)
        hidden: list[tuple[float, str | Stretch]] = []
        for at, (place, (fact, rest)) in enumerate(zip((start, start + distance), paragraphs, strict=True)):
            hidden.append((place, stretch(f"needle_{at}", stretch(f"needle_fact_{at}", fact), f" {rest}")))

        def compose(count: int) -> MarkedText:
            return written(
                stretch("instruction", "Here are some facts. Answer the exact following question based on the text:"),
                " ",
                stretch("question_before", asked),
                " Answer the question as it appears exactly.\n",
                *among(padding.first(count), hidden),
                "\n",
                stretch("question", f"{asked}\nAnswer only True or False.\nAnswer:"),
            )

        count, text = fit(compose, cell.length, tokenizer, what=f"{self.name}: the question and its facts")
        facts = {
            "padding": Path(cell.value("padding")).name,
            "padding_sentences": count,
            "question": cell.seed,
            "label": true,
        }
        return self.made(cell, text, tokenizer, answer=f" {true}", facts=facts)

    def _padding(self, cell: Cell, paragraphs: list[tuple[str, str]], names: Drawn) -> Drawn:
        kind = str(cell.value("padding"))
        rng = random.Random(f"{self.seed}/{self.name}/s{cell.seed}/padding {kind}")
        if kind == "duplicate":
            return Drawn(cycle(" ".join(paragraph) for paragraph in paragraphs))
        if kind == "similar":
            return Drawn(_others(rng, names))
        return filler("templates" if kind == "different" else kind, rng)


def _others(rng: random.Random, names: Drawn) -> Iterator[str]:
    """Yield paragraphs about other people, each with a comparison of two."""
    known = iter(names)
    for _ in range(3):
        next(known)
    for one, other in zip(known, known, strict=False):
        yield " ".join(_paragraph(rng, one, other, rng.choice(rng.choice(_RELATIONS))))


def _paragraph(rng: random.Random, one: str, other: str, more: str) -> tuple[str, str]:
    """Return the sentence that compares two people, and one about the first."""
    about = rng.choice(_ABOUT).format(
        name=one,
        place=rng.choice(_PLACES),
        person=rng.choice(_PEOPLE),
        thing=rng.choice(_THINGS),
        animal=rng.choice(_ANIMALS),
        food=rng.choice(_FOODS),
    )
    return f"{one} is {more} than {other}.", about

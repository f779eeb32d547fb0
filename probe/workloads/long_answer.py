"""A long answer with constraints to keep: many items in a given order, every so many of them begun in another way."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Final, Literal

from probe.sample import Sample, Span
from probe.success import SuccessRule
from probe.workloads.filling import among, check_filler, filler
from probe.workloads.fitting import fit, within
from probe.workloads.grid import Cell, Grid
from probe.workloads.lexicon import CITIES, NEEDLE, NUMBERS
from probe.workloads.marked_text import MarkedText
from probe.workloads.names import values
from probe.workloads.stretches import Stretch, stretch, written

_NUMBERS_EACH: Final = 4
MOST_CITIES: Final = len(NUMBERS) // _NUMBERS_EACH
"""Items of `cities`, at most: each has four two-digit numbers that no other has."""
BEGINNING: Final = "In the evening"
"""What every so many of the sentences are to begin with."""
_BEFORE: Final = "Some magic numbers are hidden within the following text. Make sure to memorize them."
_QUESTION: Final = (
    "Write down the magic number for each of the following, in this order and in one sentence each: {keys}.{every} "
    "Answer: The magic number for {first} is"
)
_EVERY: Final = " Begin sentence {places} with the words: {beginning}."


@dataclass(frozen=True)
class long_answer(Grid):
    """A list to be written item by item, which only the prompt says: does the model keep to it as its output grows?

    After LongGenBench (Wu et al. 2024, arXiv 2409.02076), whose long answers have constraints at single places and at
    every so many. What differs: the text is of this toolkit's own templates, and each constraint is a phrase that the
    response holds or does not, so that no model judges. The magic numbers stand in the text in an order of their own;
    the list of keys at its end says in which they are to be written, one sentence each, every `every`-th begun with "In
    the evening". The first sentence is begun in the prompt. Of each sentence it is looked for `number for KEY is
    VALUE`, and where it is due for the beginning with the key; the fact `constraints` names item, kind and phrase (of
    the first item, which the prompt has begun, the kind `begun`), `item_stops` the token of the right answer after
    which each item ends. The whole prompt is the span `prompt`, so that the rest of a row's attention is on the model's
    own output.
    """

    lengths: tuple[int, ...] = (512, 1024)
    """Prompt lengths in tokens, special tokens included; never exceeded, and met to within one sentence."""
    success_rule: SuccessRule = "all"
    """`all`: the score is the share of constraints that the response keeps."""
    items: int | None = None
    """Sentences to be written. None: 10, or 4 below 512 tokens and 2 below 256."""
    every: int = 5
    """Every so many of them begin with "In the evening"; 0: none."""
    kind: Literal["cities", "words"] = "cities"
    """What the keys are: `cities` (at most 22, with four two-digit numbers each) or `words` (`amber-anchor`, any number
    of them, with seven digits each)."""
    haystack: str = "templates"
    """`templates`, `noise`, or the path of a UTF-8 text file."""
    given: Literal["all", "gold_only", "gold_absent"] = "all"
    """`gold_only` leaves out all but the magic numbers, `gold_absent` leaves those out: what is kept is guessed."""

    def check(self) -> None:
        if (self.items is not None and self.items < 2) or self.every < 0 or self.every == 1:
            raise self.error("items must be 2 or more, and every 0, or 2 or more")
        if self.kind == "cities" and (self.items or 0) > MOST_CITIES:
            raise self.error(f"there are numbers for {MOST_CITIES} cities at most; kind: words has any number of items")

    def prepare(self, tokenizer: Any) -> None:
        check_filler(self.haystack)

    def cue(self) -> str:
        return "Answer:"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        items = self.items or (10 if cell.length >= 512 else 4 if cell.length >= 256 else 2)
        keys, drawn = self._pairs(cell, items)
        rng = self.rng(cell, "places")
        gold = [
            (rng.random(), _needle(index, key, value))
            for index, (key, value) in enumerate(zip(keys, drawn, strict=True))
        ]
        due = [at for at in range(1, items + 1) if self.every and at % self.every == 0]
        every = _EVERY.format(places=", ".join(map(str, due)), beginning=BEGINNING) if due else ""
        question = stretch("question", _QUESTION.format(keys=", ".join(keys), every=every, first=keys[0]))
        hidden = [] if self.given == "gold_absent" else gold
        hay = filler(self.haystack, self.rng(cell, "haystack"))

        def compose(count: int) -> MarkedText:
            context = stretch("context", *among(hay.first(count), hidden)) if count or hidden else ""
            return written(stretch("instruction", _BEFORE), "\n", context, "\n", question)

        what = f"{self.name}: {items} items and the question for them"
        if self.given == "gold_only":
            count, text = 0, within(compose(0), cell.length, tokenizer, what=what)
        else:
            count, text = fit(compose, cell.length, tokenizer, what=what)
        sentences = [_sentence(at, key, value, at in due) for at, key, value in _numbered(keys, drawn)]
        constraints: list[tuple[int, str, str]] = []
        for at, key, value in _numbered(keys, drawn):
            # The prompt has begun the first sentence, which says where it stands in the list: another kind of question.
            constraints.append((1, "begun", value) if at == 1 else (at, "value", f"number for {key} is {value}"))
            if at in due:
                constraints.append((at, "every", f"{BEGINNING} the magic number for {key}"))
        made = self.made(
            cell,
            text,
            tokenizer,
            answer="".join(sentences),
            accepted=tuple(phrase for _, _, phrase in constraints),
            facts={
                "given": self.given,
                "items": items,
                "num_needles": len(hidden),
                "haystack_sentences": count,
                "constraints": [list(each) for each in constraints],
                "end_token": getattr(tokenizer, "eos_token_id", None),
            },
        )
        stops = _stops(tokenizer, made.answer_tokens, sentences)
        prompt = Span("prompt", 0, len(made.tokens))
        return dataclasses.replace(made, spans=(prompt, *made.spans), facts={**made.facts, "item_stops": stops})

    def _pairs(self, cell: Cell, items: int) -> tuple[list[str], list[str]]:
        """Return the keys in the order of the answer, and their values."""
        rng = self.rng(cell, "items")
        if self.kind == "words":
            return values(rng, "words").first(items), values(rng, "numbers").first(items)
        numbers = rng.sample(NUMBERS, items * _NUMBERS_EACH)
        four = [numbers[at : at + _NUMBERS_EACH] for at in range(0, len(numbers), _NUMBERS_EACH)]
        return rng.sample(CITIES, items), [" ".join(each) for each in four]


def _numbered(keys: list[str], drawn: list[str]) -> list[tuple[int, str, str]]:
    return [(at, key, value) for at, (key, value) in enumerate(zip(keys, drawn, strict=True), start=1)]


def _needle(index: int, key: str, value: str) -> Stretch:
    before, after = NEEDLE.format(city=key, value="\0").split("\0")
    return stretch(f"needle_{index}", before, stretch(f"needle_value_{index}", value), after)


def _sentence(at: int, key: str, value: str, begun: bool) -> str:
    if at == 1:
        # The prompt has begun it; no item of 1 is due to begin otherwise, since `every` is at least 2.
        return f" {value}."
    said = NEEDLE.format(city=key, value=value)
    return f" {BEGINNING} {said[0].lower()}{said[1:]}" if begun else f" {said}"


def _stops(tokenizer: Any, tokens: tuple[int, ...], sentences: list[str]) -> list[int]:
    """Return after how many tokens of the answer each sentence is complete, white space aside."""
    stops: list[int] = []
    wanted = 0
    for sentence in sentences:
        wanted += len("".join(sentence.split()))
        first = stops[-1] if stops else 0
        stops.append(bisect_left(range(len(tokens)), wanted, lo=first, key=lambda at: _written(tokenizer, tokens[:at])))
    return stops


def _written(tokenizer: Any, tokens: tuple[int, ...]) -> int:
    return len("".join(str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)).split()))

"""A number hidden in five sentences said over and over."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Literal

from probe.sample import Sample
from probe.workloads.filling import NOISE
from probe.workloads.fitting import fit, within
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import MarkedText
from probe.workloads.names import values
from probe.workloads.stretches import Stretch, stretch, written

_BEFORE = {
    "landmark": "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will "
    "quiz you about the important information there.",
    "state": "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it.",
}
_WORD = {"landmark": "pass key", "state": "passkey"}
_QUESTION = "What is the pass key? The {word} is"


@dataclass(frozen=True)
class passkey(Grid):
    """A passkey of five digits in a text that repeats itself, asked for at its end.

    The prompts of Mohtashami and Jaggi 2023 (arXiv 2305.16300; `form: landmark`) and of Chen et al. 2024 (arXiv
    2410.07145; `form: state`, five sentences a line). What differs: the text is whole sentences, or lines, up to the
    length in tokens, where the first paper counts characters; every number of five digits from 10000 on is drawn alike.
    The text is the same at every length, so it asks less of a model than a needle in prose does.
    """

    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Share of the repeated sentences that stand before the passkey."""
    form: Literal["landmark", "state"] = "landmark"
    """Whose words: `landmark` (Mohtashami and Jaggi) or `state` (Chen et al., where the state of Mamba collapses)."""
    digits: int = 5
    """Digits of the passkey."""
    given: Literal["all", "gold_only", "gold_absent"] = "all"
    """`gold_only` leaves the repeated sentences out, `gold_absent` the passkey (an answer that is right is a guess)."""

    def check(self) -> None:
        self.check_shares("depths", self.depths)
        if not 1 <= self.digits <= 15:
            raise self.error(f"digits must lie between 1 and 15, not {self.digits}")

    def axes(self) -> dict[str, tuple[float | int | str, ...]]:
        return {"needle_depth": tuple(map(float, self.depths))}

    def cue(self) -> str:
        return f"The {_WORD[self.form]} is"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        (key,) = values(self.rng(cell, "passkey"), "numbers", digits=self.digits).first(1)

        def compose(count: int) -> MarkedText:
            before = round(cell.value("needle_depth") * count)
            noise = list(islice(cycle(NOISE if self.form == "landmark" else [" ".join(NOISE)]), count))
            hidden = [] if self.given == "gold_absent" else [self._needle(key)]
            between = " " if self.form == "landmark" else "\n"
            lines: list[str | Stretch] = [stretch("instruction", _BEFORE[self.form]), between.join(noise[:before])]
            lines += [*hidden, between.join(noise[before:])]
            # An empty line before the question, as the prompt of `state` has it.
            gap = [] if self.form == "landmark" else ["\n"]
            asked = stretch("question", _QUESTION.format(word=_WORD[self.form]))
            return written(*_lines([line for line in lines if line]), "\n", *gap, asked)

        per_item = 1 if self.form == "landmark" else len(NOISE)
        what = f"{self.name}: the passkey and its question"
        if self.given == "gold_only":
            count, text = 0, within(compose(0), cell.length, tokenizer, what=what)
        else:
            count, text = fit(compose, cell.length, tokenizer, what=what)
        return self.made(
            cell, text, tokenizer, answer=f" {key}", facts={"given": self.given, "noise_sentences": count * per_item}
        )

    def _needle(self, key: str) -> Stretch:
        word, again = _WORD[self.form], stretch("needle_value_again", key)
        return stretch("needle", f"The {word} is ", stretch("needle_value", key), ". Remember it. ", again,
                       f" is the {word}.")  # fmt: skip


def _lines(pieces: list[str | Stretch]) -> list[str | Stretch]:
    """Put each piece on a line of its own."""
    return [part for piece in pieces for part in (piece, "\n")][:-1]

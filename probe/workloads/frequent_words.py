"""The words that stand most often in a text of coded words, whose counts follow Zipf's law."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

from scipy.special import zeta

from probe.sample import Sample
from probe.success import SuccessRule
from probe.workloads.fitting import fit, within
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import MarkedText
from probe.workloads.stretches import stretch, written

_INSTRUCTION = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words."
)
_QUESTION = (
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text? Answer: According to the coded text above, the three most frequently "
    "appeared words are:"
)
_LETTERS = 6
_ASKED = 3


@dataclass(frozen=True)
class frequent_words(Grid):
    """Frequent words extraction: coded words whose counts fall as rank^−alpha; the three most frequent are asked for.

    Prompt, counts and scoring of Hsieh et al. 2024 (RULER, arXiv 2404.06654): the word of rank k stands
    ⌊n · k^−alpha / ζ(alpha)⌋ times among n, the first rank being dots. What differs: no number of words is taken at
    which the last word asked for stands as often as the next, so that the answer is never a matter of taste; there are
    at least 20 ranks (RULER: one for each 50 tokens); what is decoded are the answer's tokens and 16 more (RULER: 50).
    """

    success_rule: SuccessRule = "all"
    """`all` as RULER has it (the score is the share of the words found)."""
    alpha: float = 2.0
    """Exponent of Zipf's law."""

    def check(self) -> None:
        if not 1 < self.alpha <= 10:
            raise self.error(f"alpha must lie above 1 and at most at 10, not {self.alpha}")

    def cue(self) -> str:
        return "Answer:"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        rng = self.rng(cell, "words")
        ranks = max(20, cell.length // 50)
        words: list[str] = []
        while len(words) < ranks - 1:
            word = "".join(rng.choices(string.ascii_lowercase, k=_LETTERS))
            words += [] if word in words else [word]

        def compose(number: int) -> MarkedText:
            counts = self.counts(number, ranks)
            rng = self.rng(cell, "order")
            # Each word's places are drawn from its own generator's next numbers, so that a longer text is a like one.
            entries = [(rng.random(), word) for word, times in zip(["...", *words], counts, strict=True)
                       for _ in range(times)]  # fmt: skip
            coded = " ".join(word for _, word in sorted(entries))
            context, question = stretch("context", coded), stretch("question", _QUESTION)
            return written(stretch("instruction", _INSTRUCTION), " ", context, "\n", question)

        least = next(number for number in range(1, 10**6) if self._told(number, ranks))
        what = f"{self.name}: the question with the fewest words that tell its answer"
        number, text = fit(compose, cell.length, tokenizer, what=what, least=least)
        while not self._told(number, ranks):
            number -= 1
            text = within(compose(number), cell.length, tokenizer, what=what)
        counts = self.counts(number, ranks)
        asked = tuple(words[:_ASKED])
        facts = {"alpha": self.alpha, "num_words": sum(counts), "counts": counts[: _ASKED + 2]}
        return self.made(cell, text, tokenizer, answer=f" {', '.join(asked)}", accepted=asked, facts=facts)

    def counts(self, number: int, ranks: int) -> list[int]:
        """Return how often the words of each rank stand among `number`, the dots' first."""
        return [int(number * rank**-self.alpha / zeta(self.alpha)) for rank in range(1, ranks + 1)]

    def _told(self, number: int, ranks: int) -> bool:
        """Return whether the three words after the dots stand in the text more often than any other."""
        counts = self.counts(number, ranks)
        return counts[_ASKED] > counts[_ASKED + 1]

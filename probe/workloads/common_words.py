"""The words that stand most often in a numbered list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from probe.errors import UsageError
from probe.sample import Sample
from probe.success import SuccessRule
from probe.workloads.fitting import fit
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import MarkedText, encode
from probe.workloads.names import ADJECTIVES, NOUNS, Drawn, values
from probe.workloads.stretches import stretch, written

_INSTRUCTION = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often."
)
_QUESTION = (
    "Question: What are the {number} most common words in the above list? Answer: The top {number} words that appear "
    "most often in the list are:"
)
# Common words, how often each stands in the list, how often every other word does. The first two are RULER's.
_FROM_4096 = (10, 30, 3)
_BELOW = ((10, 6, 1), (5, 4, 1), (3, 3, 1), (2, 3, 1))


@dataclass(frozen=True)
class common_words(Grid):
    """Common words extraction: a numbered list in which a few words stand more often than the rest.

    Prompt, counts and scoring of Hsieh et al. 2024 (RULER, arXiv 2404.06654): ten common words, each 30 times among
    words that stand 3 times, from 4,096 tokens on, and 6 times among words that stand once below. What differs: words
    are pairs (`amber-anchor`) of lists of this toolkit's, no solved example stands before the list, what is decoded are
    the answer's tokens and 16 more (RULER: 120), and where ten common words leave no room for as many others, there are
    5, 3 or 2. A sample's facts say which; state the three counts to compare lengths.
    """

    success_rule: SuccessRule = "all"
    """`all` as RULER has it (the score is the share of the words found)."""
    num_common: int | None = None
    """Common words; the three counts are stated together or not at all."""
    common_repeats: int | None = None
    """How often each common word stands in the list."""
    uncommon_repeats: int | None = None
    """How often every other word does."""
    words: Literal["pairs", "single"] = "pairs"
    """`single`: words of one part, for short lists; there are few of them."""

    def check(self) -> None:
        counts = (self.num_common, self.common_repeats, self.uncommon_repeats)
        stated = [count for count in counts if count is not None]
        if len(stated) not in (0, 3):
            raise self.error("num_common, common_repeats and uncommon_repeats are stated together or not at all")
        if stated and (min(stated) < 1 or stated[1] <= stated[2]):
            raise self.error("a common word stands in the list more often than another, and each at least once")

    def cue(self) -> str:
        return "Answer:"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        common, often, seldom = self._counts(cell, tokenizer)
        drawn = self._words(cell)

        def compose(count: int) -> MarkedText:
            return self._text(cell, drawn, (common, often, seldom), count)

        what = f"{self.name}: {common} common words, {often} times each, with as many others"
        count, text = fit(compose, cell.length, tokenizer, what=what, least=common)
        asked = tuple(drawn.first(common))
        facts = {
            "num_common": common,
            "common_repeats": often,
            "uncommon_repeats": seldom,
            "num_uncommon": count,
        }
        answer = "".join(f" {at + 1}. {word}" for at, word in enumerate(asked))
        return self.made(cell, text, tokenizer, answer=answer, accepted=asked, facts=facts)

    def _counts(self, cell: Cell, tokenizer: Any) -> tuple[int, int, int]:
        """Return the counts that are stated, or RULER's, or the first below them that the length holds."""
        if self.num_common and self.common_repeats and self.uncommon_repeats:
            return self.num_common, self.common_repeats, self.uncommon_repeats
        if cell.length >= 4096:
            return _FROM_4096
        for counts in _BELOW:
            least = self._text(cell, self._words(cell), counts, counts[0])
            if len(encode(tokenizer, least.text).tokens) <= cell.length:
                return counts
        return _BELOW[-1]

    def _words(self, cell: Cell) -> Drawn:
        rng = self.rng(cell, "words")
        if self.words == "pairs":
            return values(rng, "words")
        known = [*ADJECTIVES, *NOUNS]
        rng.shuffle(known)

        def single() -> Iterator[str]:
            yield from known
            raise UsageError(
                f"{self.name}: there are {len(known)} words of one part, and more are needed; words: pairs"
            )

        return Drawn(single())

    def _text(self, cell: Cell, drawn: Drawn, counts: tuple[int, int, int], others: int) -> MarkedText:
        common, often, seldom = counts
        rng = self.rng(cell, "order")
        repeats = [often] * common + [seldom] * others
        # Each entry's place is drawn in turn, so that one word more leaves the order of the others.
        entries = [
            (rng.random(), word)
            for word, times in zip(drawn.first(common + others), repeats, strict=True)
            for _ in range(times)
        ]
        listed = " ".join(f"{at + 1}. {word}" for at, (_, word) in enumerate(sorted(entries)))
        question = stretch("question", _QUESTION.format(number=common))
        return written(stretch("instruction", _INSTRUCTION), "\n", stretch("context", listed), "\n", question)

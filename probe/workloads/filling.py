"""What fills a text up to its length, and what is hidden in it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Final

from probe.workloads.haystack import file_sentences, haystack_sentences
from probe.workloads.names import Drawn
from probe.workloads.stretches import Stretch

NOISE: Final[tuple[str, ...]] = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
"""Sentences that say nothing, in the order in which Mohtashami and Jaggi 2023 and those after them repeat them."""


def filler(source: str, rng: random.Random) -> Drawn:
    """Return sentences without end: `noise` (the five sentences as one, again and again), `templates`, or a file's.

    Raises NotAvailable for a file that cannot be read.
    """
    if source == "noise":
        return Drawn(repeat(" ".join(NOISE)))
    return Drawn(sentence for sentence, _ in haystack_sentences(source, rng))


def check_filler(source: str) -> None:
    """Raise NotAvailable, or UsageError for an empty one, where a haystack's file cannot be read."""
    if source not in ("noise", "templates"):
        file_sentences(source)


def among(
    sentences: Sequence[str | Stretch], hidden: Sequence[tuple[float, str | Stretch]], between: str = " "
) -> Iterator[str | Stretch]:
    """Yield the sentences with each hidden stretch after its share of them, and `between` between all.

    Stretches that come to stand side by side are in the order of their shares, and those of one share as given.
    """
    order = sorted(range(len(hidden)), key=lambda at: hidden[at][0])
    pieces: list[str | Stretch] = []
    done = 0
    for at in order:
        stop = round(hidden[at][0] * len(sentences))
        pieces += [*sentences[done:stop], hidden[at][1]]
        done = stop
    for index, piece in enumerate([*pieces, *sentences[done:]]):
        if index:
            yield between
        yield piece

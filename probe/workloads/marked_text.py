"""Text whose stretches have names, and the token ranges that they become; nothing is searched for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe.errors import UsageError
from probe.sample import Span


@dataclass(frozen=True)
class MarkedText:
    """A text and the character range of each named stretch in it.

    A range begins and ends at characters that are not white space.
    """

    text: str
    """The whole text."""
    ranges: Mapping[str, tuple[int, int]]
    """Name of a stretch → half-open range of characters."""

    @classmethod
    def join(cls, pieces: Iterable[tuple[str | None, str]]) -> MarkedText:
        """Return the pieces `(name or None, text)` with single spaces between them."""
        texts: list[str] = []
        ranges, start = {}, 0
        for name, text in pieces:
            if name is not None:
                ranges[name] = (start, start + len(text))
            texts.append(text)
            start += len(text) + 1
        return cls(" ".join(texts), ranges)

    def tokenised(self, tokenizer: Any) -> Tokenised:
        """Tokenise the text once, special tokens included, and turn the character ranges into token ranges."""
        encoded = encode(tokenizer, self.text)
        edges = np.asarray(encoded.offsets, dtype=np.int64).reshape(-1, 2)
        spans = tuple(
            token_range(name, edges[:, 0], edges[:, 1], start, stop) for name, (start, stop) in self.ranges.items()
        )
        return Tokenised(encoded.tokens, spans, encoded.num_leading, encoded.num_stripped)


@dataclass(frozen=True)
class Tokenised:
    """The tokens of a marked text and the spans in them."""

    tokens: tuple[int, ...]
    """Token ids, special tokens at the beginning included, those that the tokenizer appends left out."""
    spans: tuple[Span, ...]
    """One for each named stretch, in its order."""
    num_leading: int
    """How many special tokens stand before the text (a beginning-of-sequence token, say)."""
    num_stripped: int
    """How many special tokens the tokenizer appended (an end-of-sequence token, say) and were left out."""


@dataclass(frozen=True)
class Encoding:
    """What a tokenizer made of a text, without the special tokens that it appended."""

    tokens: tuple[int, ...]
    """Token ids."""
    offsets: list[tuple[int, int]]
    """Half-open range of characters of each token; empty for a special token."""
    num_leading: int
    """Special tokens before the text."""
    num_stripped: int
    """Special tokens that were appended and left out."""


def encode(tokenizer: Any, text: str) -> Encoding:
    """Tokenise `text` with special tokens and offsets; raises `UsageError` for a tokenizer that knows no offsets."""
    require_offsets(tokenizer)
    result = tokenizer(
        text, add_special_tokens=True, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
    )
    special = result["special_tokens_mask"]
    stop = len(special)
    while stop and special[stop - 1]:
        stop -= 1
    start = 0
    while start < stop and special[start]:
        start += 1
    return Encoding(tuple(result["input_ids"][:stop]), result["offset_mapping"][:stop], start, len(special) - stop)


def require_offsets(tokenizer: Any) -> None:
    """Raise `UsageError` for a slow tokenizer: without character offsets no span could be made."""
    if not getattr(tokenizer, "is_fast", False):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise UsageError(
            f"tokenizer {name} ({type(tokenizer).__name__}) gives no character offsets; a fast tokenizer is needed "
            "(AutoTokenizer loads one where the model has a tokenizer.json)"
        )


def token_range(name: str, starts: np.ndarray, stops: np.ndarray, start: int, stop: int) -> Span:
    """Return the span of the tokens that overlap the characters [start, stop).

    A token that straddles the edge belongs to the span, since it overlaps it in a character that is not white space;
    one that reaches up to the span with a space alone does not. Special tokens have no characters and so belong to no
    span.
    """
    overlaps = np.flatnonzero((starts < stop) & (stops > start) & (stops > starts))
    if len(overlaps) == 0:
        raise UsageError(f"span {name!r}: the tokenizer makes no token of its text")
    return Span(name, int(overlaps[0]), int(overlaps[-1]) + 1)

"""How much of something fits into a number of tokens, for any tokenizer: found by few tokenisations, and proven."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from probe.errors import UsageError
from probe.workloads.marked_text import MarkedText, encode


class Fitted(NamedTuple):
    """The largest text of its kind that stays within a length."""

    number: int
    """How many items it holds; with one more it would be too long."""
    text: MarkedText
    """The text."""


def fit(
    compose: Callable[[int], MarkedText],
    length: int,
    tokenizer: Any,
    *,
    what: str,
    least: int = 0,
    most: int | None = None,
) -> Fitted:
    """Return `compose(number)` for the largest number whose text takes at most `length` tokens, special ones included.

    `compose` gives a longer text for a larger number, from `least` on. Estimates lead there, and the last two
    tokenisations prove it. Raises UsageError, beginning with `what`, where even the least does not fit, naming the
    tokens that it takes, and where `most` items, all that there are, do not fill the length.
    """

    def tokens(text: MarkedText) -> int:
        return len(encode(tokenizer, text.text).tokens)

    fits, text = least, compose(least)
    first = used = tokens(text)
    if used > length:
        raise UsageError(f"{what} takes {used} tokens with this tokenizer and does not fit into {length}")
    above: tuple[int, int] | None = None
    tries = 0
    while above is None or above[0] - fits > 1:
        if fits == most:
            raise UsageError(f"{what}: there are no more than {most}, which take {used} of {length} tokens")
        tries += 1
        at = _next(fits, used, (least, first), above, length, bisect=tries % 4 == 0)
        at = at if most is None else min(at, most)
        tried = compose(at)
        taken = tokens(tried)
        if taken <= length:
            fits, used, text = at, taken, tried
        else:
            above = (at, taken)
    return Fitted(fits, text)


def within(text: MarkedText, length: int, tokenizer: Any, *, what: str) -> MarkedText:
    """Return the text; raises UsageError, beginning with `what`, where it takes more than `length` tokens."""
    taken = len(encode(tokenizer, text.text).tokens)
    if taken > length:
        raise UsageError(f"{what} takes {taken} tokens with this tokenizer and does not fit into {length}")
    return text


def _next(
    fits: int, used: int, start: tuple[int, int], above: tuple[int, int] | None, length: int, *, bisect: bool
) -> int:
    """Return the next count to try: by the tokens that an item takes so far, or halfway between what is known."""
    if above is None:
        if used <= start[1]:
            return fits + 4 if fits == start[0] else 2 * fits
        per_item = (used - start[1]) / (fits - start[0])
        # What a few items take says little of the rest, so no leap is longer than 16-fold.
        return min(fits + max(1, int((length - used) / per_item)), 16 * max(fits, 1))
    too_many, taken = above
    if bisect or taken <= used:
        return (fits + too_many) // 2
    at = fits + int((length - used) / (taken - used) * (too_many - fits))
    return min(max(at, fits + 1), too_many - 1)

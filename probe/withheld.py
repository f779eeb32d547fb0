"""Token ids that a private trace left out, and how they stand in JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NoReturn

from probe.errors import UsageError

MOST_TOKENS: Final = 2**24
"""No prompt is longer; a trace that claims more would cost memory."""


class Withheld(tuple[int, ...]):
    """Token ids that were left out: how many there were is known, which is not; to look at one raises UsageError."""

    __slots__ = ()

    @classmethod
    def of(cls, number: int) -> Withheld:
        """Return as many ids as there were."""
        return cls((-1,) * number)

    def __repr__(self) -> str:
        return f"<{len(self)} token ids, withheld>"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(
            "the trace is private: token ids and text were left out (--private, private=True), and this needs them"
        )

    def __iter__(self) -> Iterator[int]:
        self._refuse()

    __getitem__ = __contains__ = __array__ = __add__ = __radd__ = count = index = __reversed__ = _refuse


def token_ids_to_json(tokens: tuple[int, ...]) -> Any:
    """Return token ids as JSON: a list, or `{"withheld": number}` where they were left out."""
    return {"withheld": len(tokens)} if isinstance(tokens, Withheld) else list(tokens)


def token_ids_from_json(value: Any) -> tuple[int, ...]:
    """Return what `token_ids_to_json` gave; raises TypeError, KeyError or ValueError where it gave nothing such."""
    if isinstance(value, dict):
        number = value["withheld"]
        if type(number) is not int or not 0 <= number <= MOST_TOKENS:
            raise ValueError(f"{number!r} is no number of tokens")
        return Withheld.of(number)
    return tuple(int(token) for token in value)

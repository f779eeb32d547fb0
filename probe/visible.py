"""Text from a model, a file or a user, with the characters that would not show made visible."""

from __future__ import annotations

import functools
import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def visible(text: str, *, keep: str = "") -> str:
    """Return `text` with control, bidirectional, zero-width and unassigned characters written as ⟨U+202E⟩.

    So a token cannot move the cursor, recolour the terminal, reverse the line or hide. `keep` lists characters that
    stay, e.g. a newline in a message of several lines. It does not escape markup: HTML and rich want that besides.
    """
    return text.translate(_shown(keep))


class _Shown(dict[int, int | str]):
    """What each character is written as, found once: a token may be of ten million characters."""

    def __init__(self, keep: str) -> None:
        self._keep = keep

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        hidden = character not in self._keep and unicodedata.category(character) in _HIDDEN
        self[code] = f"⟨U+{code:04X}⟩" if hidden else code
        return self[code]


@functools.cache
def _shown(keep: str) -> _Shown:
    return _Shown(keep)

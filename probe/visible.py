"""Text from a model, a file or a user, with the characters that would not show made visible."""

from __future__ import annotations

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def visible(text: str, *, keep: str = "") -> str:
    """Return `text` with control, bidirectional, zero-width and unassigned characters written as ⟨U+202E⟩.

    So a token cannot move the cursor, recolour the terminal, reverse the line or hide. `keep` lists characters that
    stay, e.g. a newline in a message of several lines. It does not escape markup: HTML and rich want that besides.
    """
    return "".join(f"⟨U+{ord(c):04X}⟩" if c not in keep and unicodedata.category(c) in _HIDDEN else c for c in text)

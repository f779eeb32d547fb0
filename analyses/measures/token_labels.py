"""What stands at a position, in words that can be shown anywhere: nothing hidden, nothing cut without saying so."""

from __future__ import annotations

import functools
from itertools import islice
from typing import TYPE_CHECKING, Final

from probe.visible import visible

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

MOST_CHARACTERS: Final = 48
"""Characters of a label, at most; a longer one ends in an ellipsis."""

FEW_CELLS: Final = 256
"""Cells on an axis up to which labels are that long; of more of them each has a quarter, or words outweigh the map."""

_SEEN: Final = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def seen(text: str) -> str:
    """Return a token's text with spaces, line ends and characters that do not show made visible; markup stays."""
    return "".join(_SEEN.get(c) or visible(c) for c in text)


# The same few thousand tokens stand in every picture of a prompt.
_seen_begin: Final = functools.lru_cache(maxsize=1 << 14)(seen)


def token_labels(trace: Trace, positions: tuple[int, int], cell_tokens: int) -> list[str]:
    """Return for each cell along one axis what its first tokens read as; [] for a private trace.

    Positions after the prompt are what the model answered. A token whose text is not known shows as its id.
    """
    if trace.private:
        return []
    tokens = trace.sample.tokens
    if trace.outcome is not None:
        tokens = (*tokens, *trace.outcome.response_tokens)
    text = trace.token_text
    most = MOST_CHARACTERS
    if positions[1] - positions[0] > FEW_CELLS * cell_tokens:
        most //= 4
    labels = []
    for start in range(*positions, cell_tokens):
        stop = min(start + cell_tokens, positions[1])
        words = ""
        # Of a cell of thousands of tokens no more are spelt than can be read.
        for token in islice(tokens[start:stop], most):
            words += _seen_begin(text[token][: most + 1]) if token in text else f"⟨token {token}⟩"
            if len(words) > most:
                break
        cut = len(words) > most or stop - start > most
        labels.append(words[: most - 1] + "…" if cut else words)
    return labels

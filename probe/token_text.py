"""What each token of a prompt reads as, so that a trace shows words where no tokenizer is at hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def token_text(tokenizer: Any, token_ids: Iterable[int]) -> dict[int, str]:
    """Return the text that each token adds in the middle of a text, by its id; {} without a tokenizer.

    Spaces that belong to a token are kept. A token that is part of a character alone reads as U+FFFD.
    """
    if tokenizer is None:
        return {}
    # Alone, a token may lose the space before it; behind another it does not.
    anchor = tokenizer.encode("a", add_special_tokens=False)
    before = _decoded(tokenizer, anchor)
    text = {}
    for token in sorted(set(token_ids)):
        read = _decoded(tokenizer, [*anchor, token])
        text[token] = read[len(before) :] if read.startswith(before) else _decoded(tokenizer, [token])
    return text


def _decoded(tokenizer: Any, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def until_the_end(tokenizer: Any, token_ids: list[int]) -> str:
    """Return the text of decoded tokens before the first end-of-sequence token: what a person would call the answer."""
    end = getattr(tokenizer, "eos_token_id", None)
    stop = token_ids.index(end) if end in token_ids else len(token_ids)
    return str(tokenizer.decode(token_ids[:stop], skip_special_tokens=True))

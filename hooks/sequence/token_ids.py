"""The tokens of a prompt that an intervention is given, as ids or as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probe.errors import UsageError


def token_ids(model: Any, prompt: Sequence[int] | str, who: str, field: str) -> tuple[int, ...]:
    """Return a prompt's token ids, text with the special tokens that the model's tokenizer adds.

    Raises `UsageError` naming the intervention and its field for text where the model brings no tokenizer (a bare
    transformers model has none).
    """
    if not isinstance(prompt, str):
        return tuple(prompt)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise UsageError(f"{who}: {field} is text, and the model brings no tokenizer; give token ids, or load it")
    return tuple(tokenizer(prompt)["input_ids"])

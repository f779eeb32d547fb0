"""How a tokenizer begins and ends a text, in words for a trace."""

from __future__ import annotations

import hashlib
from typing import Any

from probe.errors import UsageError


def check_tokenizer(tokenizer: Any) -> None:
    """Raise `UsageError` for what is no tokenizer, such as a tokenizer's name."""
    if tokenizer is not None and not callable(tokenizer):
        raise UsageError(
            f"tokenizer is a tokenizer object (transformers.AutoTokenizer.from_pretrained(…)), not {tokenizer!r:.100}"
        )


def tokenisation(tokenizer: Any) -> dict[str, Any] | None:
    """Return the special tokens that are put around a text, and the chat template's hash; None without a tokenizer."""
    if tokenizer is None:
        return None
    inside = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    # Where special tokens change the text itself, it is not found and all counts as before.
    starts = [i for i in range(len(whole) - len(inside) + 1) if whole[i : i + len(inside)] == inside]
    at = starts[0] if starts and inside else len(whole)
    template = getattr(tokenizer, "chat_template", None)
    said = template if isinstance(template, str) or template is None else repr(sorted(template.items()))
    return {
        "tokens_before": whole[:at],
        "tokens_after": whole[at + len(inside) :] if starts and inside else [],
        "bos_token_id": getattr(tokenizer, "bos_token_id", None),
        "adds_bos": getattr(tokenizer, "bos_token_id", None) in whole[:at],
        "chat_template_sha256": None if said is None else hashlib.sha256(said.encode()).hexdigest(),
    }

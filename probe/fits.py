"""Whether a model can read a sample at all: its token ids, its spans, and how long it may be."""

from __future__ import annotations

from typing import Any

from probe.errors import UsageError
from probe.sample import Sample


def check_fits(model: Any, sample: Sample) -> None:
    """Raise `UsageError` for a sample without tokens, with ids that the model does not have, or spans outside it."""
    if not sample.tokens:
        raise UsageError(f"{sample.name!r} has no tokens")
    for kind, tokens in (("", sample.tokens), (" of the answer", sample.answer_tokens)):
        wrong = next((token for token in tokens if not 0 <= token < model.vocab_size), None)
        if wrong is not None:
            raise UsageError(
                f"token id {wrong}{kind} of {sample.name!r} is outside {model.name}'s vocabulary of "
                f"{model.vocab_size}{_hint(model)}"
            )
    for span in sample.spans:
        if span.stop > len(sample.tokens):
            raise UsageError(
                f"span {span.name!r} of {sample.name!r} ends at {span.stop}, beyond its {len(sample.tokens)} tokens"
            )


def check_room(model: Any, sample: Sample, num_new: int) -> None:
    """Raise `UsageError` where prompt, answer and what is decoded need more positions than a model has learned.

    An encoder-decoder's prompt and answer count apart, and are checked as they go in.
    """
    if not model.hard_limit or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return
    # The last token of an answer is produced and never put through.
    needed = len(sample.tokens) + max(num_new, len(sample.answer_tokens)) - 1
    if needed > model.max_length:
        raise UsageError(
            f"{model.name} has {model.max_length} learned positions; {sample.name!r} needs {needed}: "
            f"{len(sample.tokens)} of the prompt and {needed - len(sample.tokens)} of what follows it"
        )


def _hint(model: Any) -> str:
    """Say where the tokenizer has more tokens than the model, so that it was made for another."""
    try:
        size = len(model.tokenizer)
    except TypeError:
        return ""
    if size <= model.vocab_size:
        return ""
    return f": its tokenizer has {size}, so the two do not fit (was the model's embedding resized with it?)"

"""In which pieces a prompt goes through a model: chunks, or where these would be wrong, at once or token by token."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from probe.hooks.attention.interface import name_of
from probe.hooks.sequence.continuation import continuation, continuation_of
from probe.hooks.sequence.decoding_state import decoding_state, recurs

_log = logging.getLogger("probe")
_said: weakref.WeakKeyDictionary[PreTrainedModel, set[str]] = weakref.WeakKeyDictionary()


def next_piece(model: PreTrainedModel, state: decoding_state, num_left: int, chunk_tokens: int) -> int:
    """How many of the tokens that are left go through at once, `chunk_tokens` being asked for.

    A model that does not go on from what it keeps gets all of them; one that does so with single tokens only, a chunk
    and then one token at a time. What is done instead of what was asked is said once, with what it costs in memory.
    """
    if state.num_tokens == 0 and num_left <= chunk_tokens:
        return num_left
    try:
        several = continuation_of(model, several=True)
        single = continuation_of(model, several=False) if recurs(model) or not several.works else continuation()
    except torch.OutOfMemoryError:
        # Where there is no room for a few tokens the chunk will fail, and the sum be told.
        return min(num_left, chunk_tokens)
    if not several.works:
        return _instead(model, state, num_left, chunk_tokens, several, single)
    size = min(num_left, chunk_tokens)
    # One token would be computed otherwise than several are, and than one forward computes it.
    if single.own_step or not single.works:
        size = max(size, min(2, num_left))
        if num_left - size == 1:
            size = size - 1 if size > 2 else num_left
    return size


def one_piece_only(model: PreTrainedModel, state: decoding_state, num_tokens: int, chunk_tokens: int) -> str | None:
    """Why a piece that is larger than was asked for cannot be halved; None where it can."""
    if num_tokens <= chunk_tokens or state.num_tokens > 0 or continuation_of(model, several=True).works:
        return None
    return f"{name_of(model)} does not go on from what it keeps"


def how_it_went(model: PreTrainedModel, pieces: Sequence[int], chunk_tokens: int) -> str:
    """The pieces that a prompt went through in, in words for the trace's provenance."""
    if not pieces:
        return "nothing went in before the last token"
    if len(pieces) == 1:
        forced = pieces[0] > chunk_tokens and not continuation_of(model, several=True).works
        why = ", since the model does not go on from what it keeps" if forced else ""
        return f"whole, {pieces[0]} tokens at once{why}"
    several = continuation_of(model, several=True)
    single = continuation_of(model, several=False) if recurs(model) else continuation()
    if not several.works:
        return f"{pieces[0]} tokens at once, then token by token, since several at once lose what the model keeps"
    words = f"in chunks of at most {max(pieces)} tokens"
    words = ", with ".join([words, *(each.words for each in several.repairs)])
    return f"{words}; single tokens without the limit on their step size, as in generate" if single.own_step else words


def _instead(
    model: PreTrainedModel, state: decoding_state, num_left: int, chunk_tokens: int, several: continuation,
    single: continuation,
) -> int:  # fmt: skip
    if single.works:
        if state.num_tokens > 0:
            return 1
        _say_once(
            model,
            f"several tokens put through on its cache {several.wrong}, so after {chunk_tokens} tokens the prompt goes "
            f"through token by token: no more memory, a forward for each; chunk_tokens of {num_left} and more puts it "
            "through at once, if there is room",
        )
        return chunk_tokens
    if state.num_tokens == 0:
        _say_once(
            model,
            f"tokens put through on its cache {several.wrong}, so all {num_left} tokens of the prompt go through at "
            f"once, not {chunk_tokens}: the activations of all are held together",
        )
    return num_left


def _say_once(model: PreTrainedModel, words: str) -> None:
    kind = words.partition(" ")[0]
    if kind not in _said.setdefault(model, set()):
        _said[model].add(kind)
        _log.warning("%s: %s", name_of(model), words)

"""A prompt going through a model in chunks, which are halved where the device has no room for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import DeviceTooSmall, NotReproducible, UsageError
from probe.hooks.attention.handed_out import handed_out
from probe.hooks.attention.interface import name_of
from probe.hooks.loading.allocation import allocation_errors
from probe.hooks.loading.placement import input_device
from probe.hooks.sequence.decoding import advance, decoding_mark, decoding_state, mark, rollback
from probe.hooks.sequence.device_memory import give_back, memory_sum
from probe.hooks.sequence.logit_slices import (
    LOGIT_TOKENS,
    can_slice_logits,
    check_last_row,
    last_hidden,
    logit_slices,
    only_last_row,
)
from probe.hooks.sequence.prompt_pieces import how_it_went, next_piece, one_piece_only

OnLogits = Callable[[int, Float[Tensor, "token vocabulary"]], None]

SMALLEST_CHUNK_TOKENS = 16
"""Chunks are not halved below this."""

_log = logging.getLogger("probe")


def prefill(
    model: PreTrainedModel,
    state: decoding_state,
    tokens: Sequence[int],
    *,
    chunk_tokens: int,
    on_logits: OnLogits | None,
) -> Float[Tensor, "vocabulary"] | None:
    """Put a prompt through after the tokens of `state`; return the logits at its last token (None for no tokens).

    `on_logits(start, logits)` gets the logits of at most 256 tokens at a time, in order, `start` the position of the
    first; no more are ever held, but for a model whose head cannot be called by itself (that of the whole chunk then).

    A model that does not go on rightly with several tokens on what it keeps gets the whole prompt at once, or single
    tokens after the first chunk (see `prompt_pieces`); a message says so, and `state.prompt` how the prompt went in.

    Where the device's memory runs out in a chunk (a GPU's or a CPU's), the cache goes back to before it, the
    chunk is halved for the rest of the prompt, and a warning says so. What was handed out of it before it failed is
    not handed out again (see `handed_out`): readers of calls, of residuals and of logits need no way back. Raises
    `DeviceTooSmall` with the sum where less than the smallest chunk would be left, where the cache has no way back,
    and where it is a reader that runs out of memory, since what it had added up by then cannot be known.
    """
    if chunk_tokens < 1:
        raise UsageError(f"chunk_tokens must be at least 1, not {chunk_tokens}")
    handed, last, start, asked, pieces = handed_out(), None, 0, chunk_tokens, list[int]()
    while start < len(tokens):
        chunk = tokens[start : start + next_piece(model, state, len(tokens) - start, chunk_tokens)]
        way_back = one_piece_only(model, state, len(chunk), chunk_tokens) or _way_back(model, state)
        try:
            with allocation_errors():
                last, failure = _chunk(model, state, chunk, on_logits, handed), None
        except torch.OutOfMemoryError as error:
            failure = str(error)
        if failure is None:
            start += len(chunk)
            pieces.append(len(chunk))
            continue
        # Only here, past the exception, do its frames no longer hold the failed chunk's tensors.
        chunk_tokens = len(chunk) // 2
        _go_back(model, state, way_back, len(chunk), failure)
    state.prompt = how_it_went(model, pieces, asked)
    return last


def _chunk(
    model: PreTrainedModel, state: decoding_state, chunk: Sequence[int], on_logits: OnLogits | None, handed: handed_out
) -> Float[Tensor, "vocabulary"]:
    if on_logits is None:
        return advance(model, state, chunk, phase="prefill", all_logits=False, handed=handed)[-1].clone()
    begins = state.num_tokens
    kept = last_hidden() if can_slice_logits(model) else None
    if kept is None:
        logits = advance(model, state, chunk, phase="prefill", all_logits=True, handed=handed)
    else:
        with only_last_row(model, kept):
            logits = advance(model, state, chunk, phase="prefill", all_logits=True, handed=handed)
    last = logits[-1].clone()
    first = handed.first_new(on_logits, "logits", begins, state.num_tokens) - begins
    if kept is None:
        pieces: Iterator[tuple[int, Tensor]] = (
            (at, logits[at : at + LOGIT_TOKENS]) for at in range(first, len(logits), LOGIT_TOKENS)
        )
    else:
        pieces = logit_slices(model, kept, state.tokens[begins:], first=first)
    with torch.no_grad():
        for at, rows in pieces:
            if kept is not None and at + len(rows) == len(chunk):
                check_last_row(model, rows[-1], last)
            try:
                with allocation_errors():
                    on_logits(begins + at, rows)
            except torch.OutOfMemoryError as error:
                raise DeviceTooSmall(
                    f"{name_of(model)}: what reads the logits ran out of device memory at {len(rows)} tokens from "
                    f"position {begins + at} on: {error}"
                ) from error
            handed.done(on_logits, "logits", begins + at + len(rows))
            del rows
    return last


def _way_back(model: PreTrainedModel, state: decoding_state) -> decoding_mark | str:
    """A mark, or why there is none."""
    try:
        return mark(model, state)
    except NotReproducible as error:
        return str(error)


def _go_back(
    model: PreTrainedModel, state: decoding_state, way_back: decoding_mark | str, num_tokens: int, failure: str
) -> None:
    where = f"a chunk of {num_tokens} tokens after {state.num_tokens} others"
    if isinstance(way_back, decoding_mark):
        rollback(state, way_back)
        where = f"a chunk of {num_tokens} tokens after {state.num_tokens} others"
    device = input_device(model)
    give_back(device)
    said = f"{name_of(model)}: {device} has no room for {where}: {memory_sum(model, state, failure)}"
    if isinstance(way_back, str):
        raise DeviceTooSmall(f"{said}; the chunk cannot be halved ({way_back}): ask for smaller chunks")
    if num_tokens // 2 < SMALLEST_CHUNK_TOKENS:
        raise DeviceTooSmall(f"{said}; chunks are not made smaller than {SMALLEST_CHUNK_TOKENS} tokens")
    _log.warning("%s; going on in chunks of %d", said, num_tokens // 2)

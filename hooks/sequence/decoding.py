"""One sequence going through a model, with a way back."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import NotReproducible, UsageError
from probe.hooks.attention.handed_out import handed_out
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.prompt_chunk import prompt_chunk, without_plain_masks
from probe.hooks.attention.switch import declared
from probe.hooks.loading.compiled import uncompiled
from probe.hooks.loading.placement import input_device
from probe.hooks.sequence.continuation import check_continuation
from probe.hooks.sequence.decoding_state import Cache, decoding_state, empty_state, put_through
from probe.hooks.sequence.forward_facts import Phase
from probe.hooks.sequence.memory_mark import decoding_mark, marked, restore
from probe.hooks.sequence.prompt_length import prompt_of

__all__ = ["Cache", "advance", "decoding_mark", "decoding_state", "empty_state", "mark", "rollback"]


@torch.no_grad()
def advance(
    model: PreTrainedModel,
    state: decoding_state,
    tokens: Sequence[int],
    *,
    phase: Phase,
    all_logits: bool,
    handed: handed_out | None = None,
) -> Float[Tensor, "token vocabulary"]:
    """Put tokens through the model after those of `state`; return the logits at each, or at the last one alone.

    Readers get what `handed` does not say that they have had.
    """
    new = torch.tensor(list(tokens), dtype=torch.long, device=input_device(model))
    if len(new) == 0:
        raise UsageError("no tokens were given to go through the model")
    whole = torch.cat([state.tokens, new])
    options = {} if all_logits or not _can_limit_logits(model) else {"logits_to_keep": 1}
    repairs = check_continuation(model, len(new)) if state.num_tokens > 0 else ()
    chunk = prompt_chunk(state.num_tokens, len(new))
    try:
        plain = without_plain_masks(chunk) if phase == "prefill" else nullcontext()
        with uncompiled(model), declared(model, phase, whole, handed), prompt_of(state.prompt_tokens), plain:
            output = put_through(model, state, new, repairs, **options)
    except (TypeError, ValueError, NotImplementedError) as error:
        if "past_key_values" not in str(error):
            raise
        raise NotReproducible(f"{name_of(model)}: it does not run on a key-value cache: {error}") from error
    logits: Tensor = output.logits[0]
    return logits if all_logits else logits[-1:]


def mark(model: PreTrainedModel, state: decoding_state) -> decoding_mark:
    """Remember where the sequence stands; raises `NotReproducible` where a layer's cache has no way back."""
    return marked(model, state)


def rollback(state: decoding_state, to: decoding_mark) -> None:
    """Forget the tokens that went in after `to` was taken; what follows is bit-identical to their never having.

    Also where a forward failed half way, so that only some layers' caches have its tokens.
    """
    if state.num_tokens < to.num_tokens:
        raise UsageError(f"the sequence holds {state.num_tokens} tokens, fewer than the {to.num_tokens} of the mark")
    restore(state, to)


def _can_limit_logits(model: PreTrainedModel) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters

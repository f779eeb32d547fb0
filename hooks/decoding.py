"""One sequence going through a model, with a way back."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from probe.errors import NotReproducible, UsageError
from probe.hooks.attention_interface import name_of
from probe.hooks.attention_switch import declared
from probe.hooks.compiled import uncompiled
from probe.hooks.continuation import check_continuation
from probe.hooks.forward_facts import Phase
from probe.hooks.handed_out import handed_out
from probe.hooks.host_cache import host_cache, host_layer
from probe.hooks.placement import input_device
from probe.hooks.prompt_chunk import prompt_chunk, without_plain_masks

Cache = Literal["device", "offload"]

_log = logging.getLogger("probe")


@dataclass(eq=False)
class decoding_state:
    """Where a sequence stands: its tokens so far and the cache of their keys and values."""

    cache: DynamicCache
    """transformers' cache; sliding layers keep only their window."""
    tokens: Int[Tensor, "token"]
    """Every token that went in, on the model's device."""

    @property
    def num_tokens(self) -> int:
        """Tokens that went in."""
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class decoding_mark:
    """A point of a sequence that `rollback` returns to. It holds the windows of sliding layers, and no copies."""

    num_tokens: int
    """Tokens that had gone in."""
    windows: tuple[tuple[Tensor | None, Tensor | None, bool] | None, ...]
    """For each sliding layer its keys, its values and whether it was in use; None for the others."""


def empty_state(model: PreTrainedModel, cache: Cache = "device") -> decoding_state:
    """A sequence that has not begun; with `offload` its keys and values will lie in the host's memory.

    On a CPU they do so anyway, and a message says that nothing is different.
    """
    if cache not in get_args(Cache):
        raise UsageError(f"cache is {cache!r}; expected {', '.join(get_args(Cache))}")
    made = DynamicCache(config=model.config)
    if cache == "offload" and _computes_on_host(model):
        _log.info("%s: cache='offload' changes nothing on a CPU, whose memory is the host's", name_of(model))
    elif cache == "offload":
        made = host_cache(model.config)
    return decoding_state(made, torch.zeros(0, dtype=torch.long, device=input_device(model)))


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
    if state.num_tokens > 0:
        check_continuation(model, len(new))
    chunk = prompt_chunk(state.num_tokens, len(new))
    try:
        plain = without_plain_masks(chunk) if phase == "prefill" else nullcontext()
        with uncompiled(model), declared(model, phase, whole, handed), plain:
            output = model(input_ids=new[None], past_key_values=state.cache, use_cache=True, **options)
    except (TypeError, ValueError, NotImplementedError) as error:
        if "past_key_values" not in str(error):
            raise
        raise NotReproducible(f"{name_of(model)}: it does not run on a key-value cache: {error}") from error
    state.tokens = whole
    logits: Tensor = output.logits[0]
    return logits if all_logits else logits[-1:]


def mark(model: PreTrainedModel, state: decoding_state) -> decoding_mark:
    """Remember where the sequence stands; raises `NotReproducible` where a layer's cache has no way back."""
    windows: list[tuple[Tensor | None, Tensor | None, bool] | None] = []
    for index, layer in enumerate(state.cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            windows.append((layer.keys, layer.values, layer.is_initialized))
        elif type(layer) in (DynamicLayer, host_layer) or not _holds_anything(layer):
            windows.append(None)
        else:
            raise NotReproducible(
                f"{name_of(model)}: the cache of layer {index} ({type(layer).__name__}) cannot be rolled back"
            )
    return decoding_mark(state.num_tokens, tuple(windows))


def rollback(state: decoding_state, to: decoding_mark) -> None:
    """Forget the tokens that went in after `to` was taken; what follows is bit-identical to their never having.

    Also where a forward failed half way, so that only some layers' caches have its tokens.
    """
    if state.num_tokens < to.num_tokens:
        raise UsageError(f"the sequence holds {state.num_tokens} tokens, fewer than the {to.num_tokens} of the mark")
    for layer, window in zip(state.cache.layers, to.windows, strict=True):
        if window is not None:
            layer.keys, layer.values, layer.is_initialized = window
            layer.cumulative_length = to.num_tokens
        elif not _holds_anything(layer):
            continue
        elif to.num_tokens == 0:
            layer.keys = layer.values = None
            layer.is_initialized = False
        elif layer.is_initialized:
            # Not by `crop`: a forward that failed left some layers, and keys without their values, as they were.
            layer.keys, layer.values = (each[..., : to.num_tokens, :] for each in (layer.keys, layer.values))
    state.tokens = state.tokens[: to.num_tokens]


def _computes_on_host(model: PreTrainedModel) -> bool:
    return bool(input_device(model).type == "cpu")


def _can_limit_logits(model: PreTrainedModel) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _holds_anything(layer: Any) -> bool:
    # A layer that shares another's keys; transformers has the class from 5.18 or later on.
    return type(layer).__name__ != "DummyLayer"

"""A point of a sequence that can be gone back to: copies of what is overwritten, references to what is replaced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.cache_utils import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from probe.errors import NotReproducible
from probe.hooks.attention.interface import name_of
from probe.hooks.sequence.decoding_state import counting_layer, decoding_state
from probe.hooks.sequence.host_cache import host_hybrid_layer, host_layer

_GROWS = (DynamicLayer, host_layer, DynamicIndexedLayer, LinearAttentionAndFullAttentionLayer, host_hybrid_layer)
_SLIDES = (DynamicSlidingWindowLayer, LinearAttentionAndSlidingWindowAttentionLayer)
_RECURS = (
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    host_hybrid_layer,
)
# What a recurrent layer's cache knows of its states, each by the number of the state.
_STATES = ("conv_states", "recurrent_states")
_FACTS = ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state", "conv_kernel_size")
_INDEXER = ("indexer_keys", "indexer_position_ids", "is_indexer_initialized")


@dataclass(frozen=True, eq=False)
class layer_mark:
    """One layer's cache as it was."""

    window: tuple[Tensor | None, Tensor | None, bool] | None = None
    """A sliding layer's keys, its values and whether it was in use; None for the others."""
    states: dict[str, dict[int, Tensor | None]] = field(default_factory=dict)
    """Copies of a recurrent layer's states; empty for the others."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else is to be put back as it was."""


@dataclass(frozen=True, eq=False)
class decoding_mark:
    """A point of a sequence that `rollback` returns to, as often as one likes.

    It holds references to the windows of sliding layers, and copies of recurrent states, which are overwritten in
    place; keys and values that merely grow are neither.
    """

    num_tokens: int
    """Tokens that had gone in."""
    layers: tuple[layer_mark, ...] = ()
    """One for each layer of transformers' cache."""
    own: Any = None
    """What a model that makes its cache itself had made: copies of its tensors."""
    in_modules: tuple[Tensor | None, ...] = ()
    """What was to be put into its modules."""

    @property
    def num_bytes(self) -> int:
        """Memory that the copies take: the recurrent states, whatever the length of the sequence."""
        states = [each.states for each in self.layers]
        return sum(each.nbytes for each in tree_leaves([states, self.own]) if isinstance(each, Tensor))


def marked(model: PreTrainedModel, state: decoding_state) -> decoding_mark:
    """Remember where the sequence stands; raises `NotReproducible` where a layer's cache has no way back."""
    layers = tuple(_marked(model, *each) for each in enumerate(getattr(state.cache, "layers", ())))
    own = [each.clone() for each in _overwritten(state.cache)], list(getattr(state.cache, "linear_cache", ()))
    begun = own if state.cache is not None else None
    return decoding_mark(state.num_tokens, layers, begun, tuple(state.in_modules))


def restore(state: decoding_state, to: decoding_mark) -> None:
    """Put back what was there; also where only some layers have the tokens since."""
    state.tokens = state.tokens[: to.num_tokens]
    state.in_modules = list(to.in_modules)
    if to.own is None:
        state.cache = None
        return
    for layer, was in zip(getattr(state.cache, "layers", ()), to.layers, strict=True):
        _restore(layer, was, to.num_tokens)
    copies, linear = to.own
    for here, copy in zip(_overwritten(state.cache), copies, strict=True):
        here.copy_(copy)
    if hasattr(state.cache, "linear_cache"):
        state.cache.linear_cache = list(linear)


def _marked(model: PreTrainedModel, index: int, layer: Any) -> layer_mark:
    kind = type(layer)
    if kind is counting_layer or not _holds_anything(layer):
        return layer_mark()
    if kind not in (*_GROWS, *_SLIDES, *_RECURS):
        raise NotReproducible(f"{name_of(model)}: the cache of layer {index} ({kind.__name__}) cannot be rolled back")
    window = (layer.keys, layer.values, layer.is_initialized) if kind in _SLIDES else None
    facts = {name: getattr(layer, name) for name in _INDEXER} if kind is DynamicIndexedLayer else {}
    if kind not in _RECURS:
        return layer_mark(window, facts=facts)
    states = {
        name: {i: None if each is None else each.clone() for i, each in getattr(layer, name).items()}
        for name in _STATES
    }
    return layer_mark(window, states, {name: dict(getattr(layer, name)) for name in _FACTS})


def _restore(layer: Any, was: layer_mark, num_tokens: int) -> None:
    kind = type(layer)
    if was.window is not None:
        layer.keys, layer.values, layer.is_initialized = was.window
        layer.cumulative_length = num_tokens
    elif kind in _GROWS and num_tokens == 0:
        layer.keys = layer.values = None
        layer.is_initialized = False
    elif kind in _GROWS and layer.is_initialized:
        # Not by `crop`: a forward that failed left some layers, and keys without their values, as they were.
        layer.keys, layer.values = (each[..., :num_tokens, :] for each in (layer.keys, layer.values))
    for name, value in was.facts.items():
        setattr(layer, name, dict(value) if isinstance(value, dict) else value)
    for name, copies in was.states.items():
        for i, copy in copies.items():
            here = getattr(layer, name)
            # Into the tensor that is there: others may hold it by its address.
            if copy is None or here[i] is None:
                here[i] = None if copy is None else copy.clone()
            else:
                here[i].copy_(copy)


def _overwritten(cache: Any) -> list[Tensor]:
    """The tensors that a model which makes its cache itself writes into: RWKV's list, xLSTM's states by layer."""
    if isinstance(cache, list):
        return cache
    held = [getattr(cache, "rnn_state", None), getattr(cache, "seqlen_offset", None)]
    return [each for each in tree_leaves(held) if isinstance(each, Tensor)]


def _holds_anything(layer: Any) -> bool:
    # A layer that shares another's keys; transformers has the class from 5.18 or later on.
    return type(layer).__name__ != "DummyLayer"

"""The attention layers of a model as they show themselves in a forward of two tokens."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.loading.placement import input_device
from probe.hooks.sequence.forward_facts import Part
from probe.kernels.call import Call

Parts = dict[Part, "dict[int, attention_layer]"]

_known: weakref.WeakKeyDictionary[PreTrainedModel, Parts] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class attention_layer:
    """One layer that attends."""

    module: weakref.ReferenceType[nn.Module]
    """The attention module, held weakly."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key-value heads."""
    head_dim: int
    """Width of queries and keys."""
    value_dim: int
    """Width of values."""


def attention_layers(model: PreTrainedModel) -> dict[int, attention_layer]:
    """The model's attention layers by index, those of an encoder-decoder's decoder; see `attention_parts`."""
    return attention_parts(model).get("self", {})


def attention_parts(model: PreTrainedModel) -> Parts:
    """The layers of each attention of a model, found by running two tokens through it once and then remembered.

    Raises `NotReproducible` naming the model and the reason where its attention cannot be reached.
    """
    if model not in _known:
        seen = _recorder()
        tokens = torch.zeros(1, 2, dtype=torch.long, device=input_device(model))
        try:
            with torch.no_grad(), attached(model, seen, alone=True):
                model(**_two_tokens(model, tokens))
        except (
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            AttributeError,
            IndexError,
            NotImplementedError,
        ) as error:
            raise NotReproducible(
                f"{name_of(model)}: a forward of two tokens with its attention watched failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        _known[model] = seen.parts
    return _known[model]


@torch.no_grad()
def layers_with_bias(model: PreTrainedModel, part: Part) -> set[int]:
    """The layers that add something to the logits by distance (ALiBi, a learned relative bias), by index."""
    seen = _biases(part)
    with attached(model, seen, alone=True):
        model(**_two_tokens(model, torch.zeros(1, 2, dtype=torch.long, device=input_device(model))))
    return seen.layers


def windowed_layers(model: PreTrainedModel) -> set[int]:
    """The layers that see only so many tokens back (a sliding window, or chunks of the text), by index."""
    seen = _seen_windows(model)
    return {layer for layer, window in seen.found.items() if window is not None} | seen.in_chunks


def layer_windows(model: PreTrainedModel) -> dict[int, int | None]:
    """How many positions a query of each layer that attends sees, its own included; None where all, or its chunk's."""
    return dict(_seen_windows(model).found)


@torch.no_grad()
def _seen_windows(model: PreTrainedModel) -> _windows:
    if model not in _known_windows:
        seen = _windows()
        with attached(model, seen, alone=True):
            model(**_two_tokens(model, torch.zeros(1, 2, dtype=torch.long, device=input_device(model))))
        _known_windows[model] = seen
    return _known_windows[model]


def _two_tokens(model: PreTrainedModel, tokens: Tensor) -> dict[str, Any]:
    given: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
    return {**given, "decoder_input_ids": tokens} if getattr(model.config, "is_encoder_decoder", False) else given


class _recorder(tap):
    part = None

    def __init__(self) -> None:
        self.parts: Parts = {}

    def change_output(self, here: site, output: Tensor) -> Tensor:
        self.parts.setdefault(here.part, {})[here.layer] = attention_layer(
            weakref.ref(here.module), here.num_heads, here.num_kv_heads, here.head_dim, here.value_dim
        )
        return output


class _biases(tap):
    wants_calls = True

    def __init__(self, part: Part) -> None:
        self.part = part
        self.layers: set[int] = set()

    def call(self, sample: int, call: Call) -> None:
        if call.alibi_slope is not None or call.distance_bias is not None:
            self.layers.add(call.layer)


class _windows(tap):
    wants_calls = True

    def __init__(self) -> None:
        self.found: dict[int, int | None] = {}
        self.in_chunks: set[int] = set()

    def call(self, sample: int, call: Call) -> None:
        self.found[call.layer] = call.window
        if call.document is not None:
            self.in_chunks.add(call.layer)


_known_windows: weakref.WeakKeyDictionary[PreTrainedModel, _windows] = weakref.WeakKeyDictionary()

"""Whether what is captured of a bridge is the pattern that the bridge computes by itself, on a short prompt."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.attention.bridge import bridge_components, layer_of
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import tap
from probe.hooks.loading.placement import input_device
from probe.kernels.call import Call
from probe.kernels.dense import Dense

NUM_TOKENS = 16
"""Tokens of the prompt."""


def compared_with_pattern(model: PreTrainedModel) -> str:
    """Hold the calls of a bridge's components against their own `hook_pattern`, and say in words how that went.

    A prompt of 16 tokens goes through twice, once with nothing of ours. Raises `NotReproducible` with the layer and the
    size of the difference where the probabilities that the calls give are not the bridge's, to the rounding of its
    dtype.
    """
    components = bridge_components(model)
    size = int(model.config.get_text_config().vocab_size)
    step = max(1, size // (NUM_TOKENS + 2))
    tokens = (torch.arange(1, NUM_TOKENS + 1, device=input_device(model)) * step)[None] % size
    patterns: dict[int, Tensor] = {}

    def keep(layer: int, module: Any, args: Any, output: Tensor) -> None:
        patterns[layer] = output.detach()[0].double().cpu()

    seen = _calls()
    with torch.no_grad():
        with ExitStack() as stack:
            for each in components:
                hook = each.hook_pattern.register_forward_hook(partial(keep, layer_of(each)))
                stack.callback(hook.remove)
            model(input_ids=tokens, use_cache=False)
        try:
            with attached(model, seen, alone=True):
                model(input_ids=tokens, use_cache=False)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise NotReproducible(
                f"{name_of(model)}: a forward of {NUM_TOKENS} tokens with its bridge's attention watched failed: "
                f"{type(error).__name__}: {error}"
            ) from error
    largest = at_most = 0.0
    for layer, pattern in patterns.items():
        off, allowed = _difference(seen.found.get(layer, []), pattern)
        if off > allowed:
            raise NotReproducible(
                f"{name_of(model)}, layer {layer}: what is captured is not the pattern that its bridge computes: "
                f"probabilities differ by {off:.3g} where {allowed:.3g} is allowed"
            )
        largest, at_most = max(largest, off), max(at_most, allowed)
    return (
        f"{NUM_TOKENS} tokens, {len(patterns)} layers: probabilities differ from the bridge's own hook_pattern by at "
        f"most {largest:.1e}, where {at_most:.1e} is allowed"
    )


class _calls(tap):
    wants_calls = True

    def __init__(self) -> None:
        self.found: dict[int, list[Call]] = {}

    def call(self, sample: int, call: Call) -> None:
        self.found.setdefault(call.layer, []).append(call)


def _difference(calls: list[Call], pattern: Tensor) -> tuple[float, float]:
    largest, allowed = 0.0 if calls else torch.inf, 0.0
    for call in calls:
        dense = Dense(call)
        rows = pattern[:, call.query_start : call.query_start + call.num_queries, : call.num_keys]
        logits = dense.logit.masked_fill(~dense.logit.isfinite(), 0).abs().amax()
        eps = torch.finfo(call.query.dtype).eps
        # The bridge rounds its logits, and its pattern, to the model's dtype.
        allowed = max(allowed, 4 * eps * (1 + float(logits)) + 1e-6)
        largest = max(largest, float((dense.probability.cpu() - rows).abs().nan_to_num(nan=torch.inf).amax()))
    return largest, allowed

"""Heads' outputs and rows of attention from a run of another prompt, densely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.patch_heads import patch_heads
from tests.interventions.definitions.scale_heads import HEADS
from tests.interventions.dense_model import causal, dense_logits, plain, tokens

DONOR = tokens(80, seed=9)
EXAMPLES = [
    patch_heads(HEADS, DONOR),
    patch_heads(HEADS, DONOR, queries=(5, 33), phase="prefill"),
    patch_heads(HEADS, DONOR, "pattern", queries=(4, 60)),
]
IDENTITIES = [
    patch_heads(HEADS, tokens(65)),
    patch_heads(HEADS, tokens(65), "pattern", (3, 65)),
    patch_heads([], DONOR),
]


def donor(model: Any) -> dict[int, tuple[Tensor, Tensor]]:
    """By layer the outputs [head query channel] and probabilities [head query key] of the other prompt."""
    found = {}

    def recording(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        probability = causal(query @ key.transpose(1, 2) * scale).softmax(-1)
        found[layer] = (probability @ value, probability)
        return found[layer][0]

    dense_logits(model, DONOR, recording)
    return found


def chosen(asked: patch_heads, layer: int, heads: int, num: int) -> Tensor:
    """Which heads and queries [head query] are patched."""
    first, stop = asked.queries or (0, len(DONOR))
    stop = min(stop, num - 1) if asked.phase == "prefill" else min(stop, num)
    found = torch.zeros(heads, num, dtype=torch.bool)
    for each, head in asked.heads:
        if each == layer:
            found[head, first:stop] = True
    return found


def definition(asked: patch_heads, model: Any) -> Any:
    other = donor(model)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        patched = chosen(asked, layer, len(query), query.shape[1])
        output, probability = other[layer]
        num = min(query.shape[1], len(DONOR))
        own = causal(query @ key.transpose(1, 2) * scale).softmax(-1)
        if asked.what == "pattern":
            theirs = torch.zeros_like(own)
            theirs[:, :num, :num] = probability[:, :num, :num]
            return torch.where(patched[..., None], theirs, own) @ value
        mixed = own @ value
        theirs = torch.zeros_like(mixed)
        theirs[:, :num] = output[:, :num]
        return torch.where(patched[..., None], theirs, mixed)

    return attend


def looks(asked: patch_heads, model: Any) -> Any:
    return definition(asked, model) if asked.what == "pattern" else plain

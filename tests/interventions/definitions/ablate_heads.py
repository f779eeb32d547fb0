"""Heads without output, with their mean output, and with uniform attention, densely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.ablate_heads import ablate_heads
from tests.interventions.definitions.scale_heads import HEADS, instead
from tests.interventions.dense_model import dense_logits, plain

REFERENCE = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8]]
EXAMPLES = [
    ablate_heads(HEADS, "zero", "decode"),
    ablate_heads(HEADS, "zero", queries=(7, 30)),
    ablate_heads(HEADS, "mean", "prefill", REFERENCE),
    ablate_heads(HEADS, "uniform"),
]
IDENTITIES = [ablate_heads([]), ablate_heads(HEADS, "uniform", queries=(0, 1))]


def uniform(query: Tensor, value: Tensor) -> Tensor:
    """The mean of all values up to each query."""
    return value.cumsum(1) / torch.arange(1, query.shape[1] + 1)[:, None]


def means(model: Any) -> dict[int, Tensor]:
    """Each layer's mean output over the reference, [head 1 channel]."""
    outputs: dict[int, list[Tensor]] = {}

    def recording(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output = plain(layer, query, key, value, scale)
        outputs.setdefault(layer, []).append(output)
        return output

    for tokens in REFERENCE:
        dense_logits(model, tokens, recording)
    return {layer: torch.cat(each, 1).mean(1, keepdim=True) for layer, each in outputs.items()}


def definition(asked: ablate_heads, model: Any) -> Any:
    mean = means(model) if asked.form == "mean" else {}

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output = plain(layer, query, key, value, scale)
        other = {
            "zero": lambda: torch.zeros_like(output),
            "mean": lambda: mean[layer].expand_as(output),
            "uniform": lambda: uniform(query, value),
        }[asked.form]()
        return instead(asked, layer, output, other)

    return attend


def looks(asked: ablate_heads, model: Any) -> Any:
    return definition(asked, model) if asked.form == "uniform" else plain

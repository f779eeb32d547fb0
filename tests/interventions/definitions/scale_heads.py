"""Heads' outputs times a factor, densely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.scale_heads import scale_heads
from tests.interventions.dense_model import plain

HEADS = [(0, 1), (1, 0), (1, 2)]
EXAMPLES = [
    scale_heads(HEADS, 0.5, queries=(4, 100)),
    scale_heads(HEADS, -2.0, phase="prefill"),
    scale_heads(HEADS, 3.0, phase="decode"),
]
IDENTITIES = [scale_heads(HEADS, 1.0), scale_heads([], 0.0), scale_heads(HEADS, 0.0, queries=(1000, 2000))]


def rows(asked: Any, num: int) -> Tensor:
    """Which queries of a whole prompt are meant: the last one decodes."""
    position = torch.arange(num)
    first, stop = asked.queries or (0, num)
    phase = {"both": position >= 0, "prefill": position < num - 1, "decode": position == num - 1}[asked.phase]
    return phase & (position >= first) & (position < stop)


def instead(asked: Any, layer: int, output: Tensor, other: Tensor) -> Tensor:
    """Put another output in the place of the chosen heads' in the rows that are meant."""
    chosen = torch.tensor([(layer, head) in asked.heads for head in range(len(output))])
    return torch.where(chosen[:, None, None] & rows(asked, output.shape[1])[:, None], other, output)


def definition(asked: scale_heads, model: Any) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output = plain(layer, query, key, value, scale)
        return instead(asked, layer, output, asked.factor * output)

    return attend


def looks(asked: scale_heads, model: Any) -> Any:
    return plain

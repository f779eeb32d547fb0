"""Attention knockout, densely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.block_attention import block_attention
from tests.interventions.dense_model import causal

EXAMPLES = [
    block_attention((3, 9), (12, 120)),
    block_attention([(2, 5), (30, 31)], [(9, 20), (40, 200)], heads=[(0, 1), (1, 2)]),
    block_attention((1, 12), phase="decode", layers=[1]),
]
IDENTITIES = [block_attention((20, 30), (5, 20)), block_attention((1, 5), queries=(5000, 6000))]


def definition(asked: block_attention, model: Any) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        num, logits = query.shape[1], query @ key.transpose(1, 2) * scale
        hidden = torch.zeros(len(query), num, num, dtype=torch.bool)
        for i in range(num):
            if asked.phase == "decode" and i < num - 1:
                continue
            if asked.queries_of is not None and not any(a <= i < b for a, b in asked.queries_of):
                continue
            for head in range(len(query)):
                if asked.heads is not None and (layer, head) not in asked.heads:
                    continue
                if asked.layers is not None and layer not in asked.layers:
                    continue
                for first, stop in asked.keys_of:
                    hidden[head, i, first:stop] = True
        return causal(logits.masked_fill(hidden, -torch.inf)).softmax(-1) @ value

    return attend

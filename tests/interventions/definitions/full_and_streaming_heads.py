"""DuoAttention's deployment, densely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.full_and_streaming_heads import full_and_streaming_heads
from tests.interventions.dense_model import causal

EXAMPLES = [
    full_and_streaming_heads([(0, 1), (1, 0), (1, 2)], 9),
    full_and_streaming_heads([], 6, num_first=0),
    full_and_streaming_heads([(0, 0), (0, 1), (1, 2)], 12, group="all", num_first=1),
]
IDENTITIES = [
    full_and_streaming_heads([], 65),
    full_and_streaming_heads([(layer, head) for layer in range(2) for head in range(3)], 65),
]


def definition(asked: full_and_streaming_heads, model: Any) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        logits = causal(query @ key.transpose(1, 2) * scale)
        group = len(query) // (getattr(model.config, "num_key_value_heads", None) or len(query))
        at = torch.arange(query.shape[1])
        far = (at[:, None] - at > asked.budget - asked.num_first) & (at >= asked.num_first)
        for head in range(len(query)):
            first = head - head % group
            named = [(layer, each) in asked.heads for each in range(first, first + group)]
            if not (any(named) if asked.group == "any" else all(named)):
                logits[head] = logits[head].masked_fill(far, -torch.inf)
        return logits.softmax(-1) @ value

    return attend

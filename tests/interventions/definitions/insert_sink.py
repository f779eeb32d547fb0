"""Softmax over one key more, whose value is zero, densely."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from probe.hooks.insert_sink import insert_sink
from tests.interventions.dense_model import causal

EXAMPLES = [
    insert_sink((0.5, -1.0, 2.0, -math.inf)),
    insert_sink((0.5, -math.inf, 2.0)),
    insert_sink(2.0, heads=[(0, 1), (1, 0)]),
]
IDENTITIES = [insert_sink(-math.inf), insert_sink(-200.0)]


def definition(asked: insert_sink, model: Any) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        logits = causal(query @ key.transpose(1, 2) * scale)
        sink = torch.full((len(query), query.shape[1], 1), -torch.inf, dtype=torch.float64)
        for head in range(len(query)):
            if asked.heads is None or (layer, head) in asked.heads:
                sink[head] = asked.logit[head] if isinstance(asked.logit, tuple) else asked.logit
        probability = torch.cat([sink, logits], -1).softmax(-1)
        return probability @ torch.cat([torch.zeros_like(value[:, :1]), value], 1)

    return attend

"""LM-Infinite's Λ mask and distance limit, densely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.limit_distance import limit_distance
from tests.interventions.dense_model import causal, inverse_frequencies, turned, unturned

EXAMPLES = [
    limit_distance(8, num_first=3),
    limit_distance(20, num_first=0),
    limit_distance(16, num_first=2, limit=24),
    limit_distance(8, num_first=3, limit=None),
    limit_distance(8, num_first=3, heads=[(0, 1), (1, 0), (1, 2)]),
]
IDENTITIES = [limit_distance(10_000), limit_distance(10_000, num_first=0, limit=None)]


def definition(asked: limit_distance, model: Any) -> Any:
    limit = asked.window if asked.limit == -1 else asked.limit

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        num = query.shape[1]
        position = torch.arange(num)
        distance = position[:, None] - position
        logits = query @ key.transpose(1, 2) * scale
        far = logits
        if limit is not None:
            at = position.clamp(max=limit).double()
            capped = turned(unturned(model, query), at[:, None] * inverse_frequencies(model))
            far = capped @ key.transpose(1, 2) * scale
        first = position < asked.num_first
        shaped = torch.where(distance < asked.window, logits, far)
        shaped = shaped.masked_fill((distance >= asked.window) & ~first, -torch.inf)
        if asked.heads is not None:
            chosen = torch.tensor([(layer, head) in asked.heads for head in range(len(query))])
            shaped = torch.where(chosen[:, None, None], shaped, logits)
        return causal(shaped).softmax(-1) @ value

    return attend

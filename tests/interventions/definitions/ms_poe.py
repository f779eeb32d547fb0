"""Ms-PoE, densely: the heads ranked by the next-to-last row without positions, each turned anew by its own factor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.ms_poe import ms_poe
from tests.interventions.dense_model import causal, chosen_logits, inverse_frequencies, turned, unturned

EXAMPLES = [
    ms_poe(first_layer=1, r_min=1, r_max=4, threshold=1.5),
    ms_poe(first_layer=0, r_max=6, order="code"),
    ms_poe(first_layer=0, r_max=3, order="index", heads=[(0, 1), (1, 0), (1, 2)]),
]
IDENTITIES = [ms_poe(first_layer=0, r_min=1, r_max=1), ms_poe(first_layer=0, r_min=1, r_max=1, order="index")]
# The heads are ranked by the end of the prompt: pieces of it are refused.
CHUNKS = False


def factors(asked: ms_poe, logits: Tensor) -> Tensor:
    """Factor of each head, from logits [head query key] without positions."""
    num_heads, num = logits.shape[:2]
    row = max(num - 2, 0)
    probability = logits[:, row, : row + 1].softmax(-1)
    shares = [float((p > asked.threshold * p.mean()).double().mean()) for p in probability]
    order = sorted(range(num_heads), key=lambda head: -shares[head])
    rank = {"rank": [order.index(h) for h in range(num_heads)], "code": order, "index": list(range(num_heads))}
    return asked.r_min + (asked.r_max - asked.r_min) * torch.tensor(rank[asked.order]).double() / num_heads


def definition(asked: ms_poe, model: Any) -> Any:
    frequency = inverse_frequencies(model)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        logits = query @ key.transpose(1, 2) * scale
        changed = logits
        if layer >= asked.first_layer:
            plain_query, plain_key = unturned(model, query), unturned(model, key)
            factor = factors(asked, plain_query @ plain_key.transpose(1, 2) * scale)
            position = torch.arange(query.shape[1]).double() / factor[:, None]
            angle = position[..., None] * frequency
            changed = turned(plain_query, angle) @ turned(plain_key, angle).transpose(1, 2) * scale
        return causal(chosen_logits(asked, layer, changed, logits)).softmax(-1) @ value

    return attend

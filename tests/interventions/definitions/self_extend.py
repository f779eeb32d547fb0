"""Self-Extend, densely: every key at its true position, and at its group's; the nearer ones of the first sort."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.self_extend import self_extend
from tests.interventions.dense_model import causal, chosen_logits, inverse_frequencies, turned, unturned

EXAMPLES = [
    self_extend(3, window=10),
    self_extend(8, window=1),
    self_extend(2, window=20, heads=[(0, 1), (1, 0), (1, 2)]),
]
IDENTITIES = [self_extend(1, window=8), self_extend(16, window=65)]


def definition(asked: self_extend, model: Any) -> Any:
    frequency, w, group = inverse_frequencies(model), asked.window, asked.group

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        position = torch.arange(query.shape[1])
        logits = query @ key.transpose(1, 2) * scale
        # The formula of the paper's code, floats and all.
        at_query = torch.tensor([i // group + w - w / group for i in position.tolist()], dtype=torch.float64)
        at_key = torch.tensor([j // group for j in position.tolist()], dtype=torch.float64)
        far_query = turned(unturned(model, query), at_query[:, None] * frequency)
        far_key = turned(unturned(model, key), at_key[:, None] * frequency)
        near = position[:, None] - position < w
        merged = torch.where(near, logits, far_query @ far_key.transpose(1, 2) * scale)
        return causal(chosen_logits(asked, layer, merged, logits)).softmax(-1) @ value

    return attend

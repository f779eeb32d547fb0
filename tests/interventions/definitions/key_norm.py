"""Keys of smallest norm, densely: the rows from the last of the `prompt` on are decoded; else the last of all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.key_norm import key_norm
from tests.interventions.dense_model import causal

# In layer 0 keys of one token have one norm, and rounding would choose between them.
EXAMPLES = [key_norm(10, layers=[1]), key_norm(0.5, layers=[1]), key_norm(7, heads=[(1, 0), (1, 2)])]
IDENTITIES = [key_norm(65), key_norm(1_000, last_token="full")]


def definition(asked: key_norm, model: Any, prompt: int | None = None) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        num = prompt or query.shape[1]
        budget = int(asked.budget) if asked.budget >= 1 else max(1, int(asked.budget * num))
        logits = causal(query @ key.transpose(1, 2) * scale)
        for head, keys in enumerate(key):
            if layer != 1 or (asked.heads is not None and (layer, head) not in asked.heads):
                continue
            order = sorted(range(num), key=lambda j: float(keys[j].square().sum()))
            for i in range(num if asked.last_token == "full" else num - 1, query.shape[1]):
                logits[head, i, [j for j in order[budget:] if j != i]] = -torch.inf
        return logits.softmax(-1) @ value

    return attend

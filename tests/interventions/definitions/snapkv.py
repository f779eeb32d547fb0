"""SnapKV, densely: the rows from the last of the `prompt` on are decoded; where nobody says, it is the last of all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.snapkv import snapkv
from tests.interventions.dense_model import causal

EXAMPLES = [
    snapkv(12, window=4),
    snapkv(14, window=9, kernel=7, pool="max"),
    snapkv(0.3, window=3, kernel=1, group="max", layers=[1]),
]
IDENTITIES = [snapkv(65, window=4), snapkv(10_000)]


def definition(asked: snapkv, model: Any, prompt: int | None = None) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        num = prompt or query.shape[1]
        budget = int(asked.budget) if asked.budget >= 1 else max(1, int(asked.budget * num))
        logits = causal(query @ key.transpose(1, 2) * scale)
        if num <= budget or (asked.layers is not None and layer not in asked.layers):
            return logits.softmax(-1) @ value
        config = model.config
        group = len(query) // (getattr(config, "num_key_value_heads", None) or len(query))
        full = logits.softmax(-1)
        for first in range(0, len(query), group):
            scores = []
            last = num - asked.window
            beyond = torch.tensor(0.0 if asked.pool == "average" else -1.0)
            for head in range(first, first + group):
                received = [sum(full[head, i, j] for i in range(last, num)) for j in range(last)]
                pooled = []
                for j in range(last):
                    around = range(j - asked.kernel // 2, j + asked.kernel // 2 + 1)
                    beside = [received[k] if 0 <= k < last else beyond for k in around]
                    pooled.append(sum(beside) / asked.kernel if asked.pool == "average" else max(beside))
                scores.append(pooled)
            score = [(sum if asked.group == "mean" else max)(each) for each in zip(*scores, strict=True)]
            order = sorted(range(len(score)), key=lambda j: -float(score[j]))
            gone = order[budget - asked.window :]
            rows = torch.arange(num if asked.last_token == "full" else num - 1, query.shape[1])
            logits[first : first + group, rows[:, None], torch.tensor(gone)] = -torch.inf
        return logits.softmax(-1) @ value

    return attend

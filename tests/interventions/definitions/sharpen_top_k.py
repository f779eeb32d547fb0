"""The largest logits of each row, sorted out one row after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.sharpen_top_k import sharpen_top_k
from tests.interventions.dense_model import causal

EXAMPLES = [sharpen_top_k(1), sharpen_top_k(9, heads=[(0, 1), (1, 0)])]
IDENTITIES = [sharpen_top_k(65), sharpen_top_k(10_000)]


def definition(asked: sharpen_top_k, model: Any) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        logits = causal(query @ key.transpose(1, 2) * scale)
        for head in range(len(logits)):
            if asked.heads is not None and (layer, head) not in asked.heads:
                continue
            for row in logits[head]:
                ranked = row.sort(descending=True).values
                if asked.k <= len(row) and ranked[asked.k - 1] > -torch.inf:
                    least = float(ranked[asked.k - 1])
                    row[row < least - 1e-5 * max(1.0, abs(least))] = -torch.inf
        return logits.softmax(-1) @ value

    return attend

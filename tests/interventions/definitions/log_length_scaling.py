"""Queries times the ratio of logarithms, densely."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from probe.hooks.log_length_scaling import log_length_scaling
from tests.interventions.dense_model import TRAINED, causal

EXAMPLES = [log_length_scaling(20), log_length_scaling(14, queries=(20, 101), heads=[(0, 1), (1, 2)])]
IDENTITIES = [log_length_scaling(10_000)]


def definition(asked: log_length_scaling, model: Any) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        trained = asked.training_length or TRAINED
        factor = torch.ones(query.shape[:2], dtype=torch.float64)
        for head in range(factor.shape[0]):
            for position in range(factor.shape[1]):
                first, stop = asked.queries or (0, factor.shape[1])
                if first <= position < stop and (asked.heads is None or (layer, head) in asked.heads):
                    factor[head, position] = max(1.0, math.log(position + 1) / math.log(trained))
        return causal(query * factor[..., None] @ key.transpose(1, 2) * scale).softmax(-1) @ value

    return attend

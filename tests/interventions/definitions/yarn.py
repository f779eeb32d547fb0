"""YaRN, densely: each pair's own frequency, and both vectors times the attention factor."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from probe.hooks.yarn import yarn
from tests.interventions.dense_model import TRAINED, rotated_anew

EXAMPLES = [
    yarn(),
    yarn(16, training_length=4096),
    yarn(4, attention_factor=1, beta_fast=2, beta_slow=0.5, layers=[1]),
]
IDENTITIES = [yarn(1), yarn("auto", training_length=100)]


def definition(asked: yarn, model: Any) -> Any:
    trained = asked.training_length or TRAINED

    def factor(length: int) -> float:
        return max(1.0, length / trained) if asked.factor == "auto" else asked.factor

    def angle(position: Tensor, frequency: Tensor) -> Tensor:
        width, s, base = 2 * len(frequency), factor(len(position)), model.config.rope_parameters["rope_theta"]

        def end(beta: float) -> float:
            return width * math.log(trained / (beta * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(math.floor(end(asked.beta_fast)), 0), min(math.ceil(end(asked.beta_slow)), width - 1)
        high = high + 0.001 if high == low else high
        slower = []
        for pair, own in enumerate(frequency.tolist()):
            m = 1 - min(max((pair - low) / (high - low), 0), 1)
            slower.append(own / s * (1 - m) + own * m)
        return position[:, None] * torch.tensor(slower, dtype=torch.float64)

    def larger(length: int) -> float:
        s = factor(length)
        given = asked.attention_factor
        return 1.0 if s == 1 else 0.1 * math.log(s) + 1 if given is None else given

    return rotated_anew(asked, model, angle, larger)

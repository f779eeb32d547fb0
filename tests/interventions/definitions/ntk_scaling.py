"""NTK-aware scaling, densely: frequencies of another base, from the formula of the base."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.ntk_scaling import ntk_scaling
from tests.interventions.dense_model import TRAINED, rotated_anew

EXAMPLES = [
    ntk_scaling(8),
    ntk_scaling(layers=[0]),
    ntk_scaling(3, dynamic=True, training_length=16),
]
IDENTITIES = [ntk_scaling(1), ntk_scaling(7, dynamic=True, training_length=100)]


def definition(asked: ntk_scaling, model: Any) -> Any:
    def angle(position: Tensor, frequency: Tensor) -> Tensor:
        longer = max(1.0, len(position) / (asked.training_length or TRAINED))
        alpha = longer if asked.alpha == "auto" else asked.alpha
        if asked.dynamic:
            a = 1 if asked.alpha == "auto" else asked.alpha
            alpha = a * longer - (a - 1)
        width = 2 * len(frequency)
        base = model.config.rope_parameters["rope_theta"] * alpha ** (width / (width - 2))
        slower = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        return position[:, None] * slower

    return rotated_anew(asked, model, angle)

"""Softmax of divided logits, densely."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from probe.hooks.temperature import temperature
from tests.interventions.dense_model import causal

EXAMPLES = [temperature(0.7), temperature(3.0, layers=[1])]
IDENTITIES = [temperature(1.0)]


def definition(asked: temperature, model: Any) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        logits = query @ key.transpose(1, 2) * scale
        if asked.layers is None or layer in asked.layers:
            logits = logits / asked.tau
        return causal(logits).softmax(-1) @ value

    return attend

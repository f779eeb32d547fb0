"""ThinK, densely: the last row meets keys without the channels of the lowest score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.think_channels import think_channels
from tests.interventions.dense_model import causal

EXAMPLES = [
    think_channels(0.5),
    think_channels(0.8, window=3),
    think_channels(0.5, window=200, layers=[1]),
    think_channels(0.7, phase="decode", heads=[(0, 1), (1, 0), (1, 2)]),
]
IDENTITIES = [think_channels(0.0), think_channels(0.01)]


def definition(asked: think_channels, model: Any) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        num_heads, num, width = query.shape
        group = num_heads // (getattr(model.config, "num_key_value_heads", None) or num_heads)
        cut = key.clone()
        for head in range(num_heads):
            first = head // group * group
            of_query = torch.stack([(query[h, -asked.window :] ** 2).mean(0) for h in range(first, first + group)])
            score = of_query.mean(0) * (key[head] ** 2).mean(0)
            for channel in sorted(range(width), key=lambda c: float(score[c]))[: int(width * asked.ratio)]:
                cut[head, :, channel] = 0
        logits, changed = query @ key.transpose(1, 2) * scale, query @ cut.transpose(1, 2) * scale
        for head in range(num_heads):
            chosen = asked.layers is None or layer in asked.layers
            if chosen and (asked.heads is None or (layer, head) in asked.heads):
                logits[head, num - 1] = changed[head, num - 1]
        return causal(logits).softmax(-1) @ value

    return attend

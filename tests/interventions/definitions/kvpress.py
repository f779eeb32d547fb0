"""kvpress' presses, densely, where the package is installed: the last row meets what a definition of ours keeps."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from probe.hooks.kvpress import kvpress
from tests.interventions.dense_model import causal

INSTALLED = importlib.util.find_spec("kvpress") is not None
EXAMPLES = [
    kvpress("StreamingLLMPress", {"compression_ratio": 0.5, "n_sink": 0}),
    kvpress("StreamingLLMPress", {"compression_ratio": 0.8, "n_sink": 0}, heads=[(0, 1), (1, 0)]),
] if INSTALLED else []  # fmt: skip
IDENTITIES = [kvpress("SnapKVPress"), kvpress("KnormPress", {"compression_ratio": 0.0})] if INSTALLED else []


def definition(asked: kvpress, model: Any) -> Any:
    """The last tokens stay."""
    _ = model

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        logits, num = query @ key.transpose(1, 2) * scale, key.shape[1]
        number = max(1, int(num * (1 - asked.arguments["compression_ratio"])))
        for head in range(len(query)):
            if asked.heads is None or (layer, head) in asked.heads:
                logits[head, -1, : num - number] = -torch.inf
        return causal(logits).softmax(-1) @ value

    return attend

"""A hyperbolic tangent over the logits, densely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.cap_logits import cap_logits
from tests.interventions.dense_model import causal

EXAMPLES = [cap_logits(0.5), cap_logits(0.1, heads=[(0, 1), (1, 1)])]
IDENTITIES = [cap_logits(1e5)]


def definition(asked: cap_logits, model: Any) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        logits = query @ key.transpose(1, 2) * scale
        capped = asked.cap * torch.tanh(logits / asked.cap)
        if asked.heads is not None:
            chosen = torch.tensor([(layer, head) in asked.heads for head in range(len(query))])
            capped = torch.where(chosen[:, None, None], capped, logits)
        return causal(capped).softmax(-1) @ value

    return attend

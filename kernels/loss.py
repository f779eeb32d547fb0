"""How badly the model predicts each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probe.kernels.statistic import ArrayFacts, Statistic

CHUNK_ELEMENTS = 1 << 24
"""Logits that are turned into float32 at a time."""


@dataclass(frozen=True)
class loss(Statistic):
    """−log p(token | what stands before it), in nats, from the logits at the position before."""

    kind = "token"
    arrays: ClassVar = {"": ArrayFacts(("token",), "nats")}
    source = "negative log-likelihood; a standard quantity"

    def of_tokens(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Take logits [token, vocabulary] and targets [token], the ids that those logits predict."""
        logits, targets = tensors
        size = max(1, CHUNK_ELEMENTS // logits.shape[-1])
        losses = [
            torch.nn.functional.cross_entropy(part.float(), target.to(part.device), reduction="none")
            for part, target in zip(torch.split(logits, size), torch.split(targets, size), strict=True)
        ]
        return {"": torch.cat(losses)}

"""Mean and maximum over blocks of consecutive positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.kernels.statistic import ArrayFacts

BLOCK_AXES = {"query": "query_block", "key": "key_block", "token": "token_block"}
"""Axis of single positions → axis of their blocks."""


@dataclass(frozen=True)
class Pool:
    """Pools the last axis of a statistic's arrays over blocks of `tokens` positions, aligned at position 0.

    Each array becomes its mean, and beside it, with the suffix `max`, its maximum. A count has only the mean. An array
    that goes with the first one's maximum (`argmax`) becomes its entry where that maximum is.
    """

    tokens: int
    """Positions in a block."""

    def __call__(self, arrays: Mapping[str, Tensor], facts: Mapping[str, ArrayFacts], start: int) -> dict[str, Tensor]:
        """Return the pooled arrays by suffix; `start` is the position of the first entry."""
        pooled: dict[str, Tensor] = {}
        where: Tensor | None = None
        for suffix, values in arrays.items():
            if facts[suffix].merge == "argmax":
                assert where is not None
                pooled[suffix] = self._blocks(values, start, 0).gather(-1, where).squeeze(-1)
                continue
            ones = torch.ones(values.shape[-1], device=values.device)
            count = self._blocks(ones, start, 0).sum(-1)
            pooled[suffix] = self._blocks(values.float(), start, 0).sum(-1) / count
            if values.is_floating_point():
                largest = self._blocks(values, start, -torch.inf).max(-1, keepdim=True)
                pooled[f"{suffix}_max".lstrip("_")] = largest.values.squeeze(-1)
                where = largest.indices if where is None else where
        return pooled

    def _blocks(self, values: Tensor, start: int, fill: float) -> Tensor:
        before = start % self.tokens
        after = -(start + values.shape[-1]) % self.tokens
        padded = torch.nn.functional.pad(values, (before, after), value=fill)
        return padded.view(*values.shape[:-1], -1, self.tokens)

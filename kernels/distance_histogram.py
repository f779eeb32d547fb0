"""Attention by distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.statistic import ArrayFacts, Statistic

NUM_BINS = 42
"""Distances up to 2^41."""


@dataclass(frozen=True)
class distance_histogram(Statistic):
    """Σ_i Σ_j p_ij over the pairs whose |i − j| falls in {0}, [1, 2), [2, 4), [4, 8), …

    There are as many bins as the last position needs, whether or not a window leaves some empty, so that a model's
    layers have the same.
    """

    kind = "scan"
    arrays: ClassVar = {"": ArrayFacts(("head", "distance_bin"), "probability", merge="sum")}
    source = "this toolkit's own"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        distance = dense.distance.abs()
        farthest = int(max(dense.query_position[-1], dense.key_position[-1]))
        masses = [
            (dense.probability * ((distance >= low) & (distance < high))).sum((-2, -1))
            for low, high in _bins()
            if low <= farthest
        ]
        return {"": torch.stack(masses, -1)}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        nearest, farthest = block.query_start - block.key_stop + 1, block.query_stop - 1 - block.key_start
        reach = max(farthest, 0 if block.causal else -nearest, 0)
        reach = reach if block.window is None else min(reach, block.window - 1)
        first, sums = block.diagonal_sums(-reach, reach + 1)
        masses = []
        for low, high in _bins():
            if low >= max(block.query_stop, block.key_stop):
                break
            mass = sums[:, _clip(low - first, sums) : _clip(high - first, sums)].sum(1)
            if low > 0 and not block.causal:
                mass = mass + sums[:, _clip(1 - high - first, sums) : _clip(1 - low - first, sums)].sum(1)
            masses.append(mass)
        return {"": torch.stack(masses, -1)}

    def coordinate(self, axis: str, size: int) -> np.ndarray[Any, Any] | None:
        """Return the bins' lower edges."""
        return np.array([low for low, _ in _bins()[:size]], dtype=np.int64) if axis == "distance_bin" else None


def _bins() -> list[tuple[int, int]]:
    return [(0, 1), *((1 << power, 2 << power) for power in range(NUM_BINS - 1))]


def _clip(index: int, sums: Tensor) -> int:
    return min(max(index, 0), sums.shape[1])

"""Attention along diagonals: to the previous token, to the one before that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class offset_mass(Statistic):
    """Σ_i p_{i,i−δ} over all queries, for each distance δ below `num_offset` and each of `others`."""

    num_offset: int = 128
    """Every distance below this one."""
    others: tuple[int, ...] = ()
    """Further distances, ascending."""

    kind = "scan"
    arrays: ClassVar = {"": ArrayFacts(("head", "offset"), "probability", merge="sum")}
    source = "this toolkit's own; previous-token heads as in Olsson et al. 2022 (2209.11895)"

    def __post_init__(self) -> None:
        wanted = [self.num_offset - 1, *self.others]
        if self.num_offset < 0 or wanted != sorted(set(wanted)):
            raise UsageError(
                f"offset_mass: others ascend and are at least num_offset = {self.num_offset}: {self.others}"
            )

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        masses = [(dense.probability * (dense.distance == offset)).sum((-2, -1)) for offset in self._offsets()]
        return {"": torch.stack(masses, -1)}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        mass = block.probability.new_zeros(block.probability.shape[0], self.num_offset + len(self.others))
        first, sums = block.diagonal_sums(0, self.num_offset)
        mass[:, first : first + sums.shape[1]] = sums
        for index, offset in enumerate(self.others, start=self.num_offset):
            _, sums = block.diagonal_sums(offset, offset + 1)
            mass[:, index] = sums.sum(1)
        return {"": mass}

    def coordinate(self, axis: str, size: int) -> np.ndarray[Any, Any] | None:
        """Return the distances."""
        return np.array(self._offsets(), dtype=np.int64) if axis == "offset" else None

    def _offsets(self) -> list[int]:
        return [*range(self.num_offset), *self.others]

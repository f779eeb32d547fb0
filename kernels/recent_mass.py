"""Attention to the tokens just before the query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.errors import UsageError
from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.epilogue import Epilogue, add_up, finish_sum, of_rows, start_sum
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.triton_language import jit, tl


@dataclass(frozen=True)
class recent_mass(Statistic):
    """Σ_j p_ij over the last `recent` positions up to the query's own, that one included: 0 ≤ i − j < recent."""

    recent: int = 64
    """Number of positions."""

    kind = "scan"
    compares_positions = True
    arrays: ClassVar = {"": ArrayFacts(("head", "query"), "probability")}
    source = "this toolkit's own; Yan et al. 2024 (2410.12850) name the phenomenon"

    def __post_init__(self) -> None:
        if self.recent < 1:
            raise UsageError(f"recent_mass: recent is at least 1, not {self.recent}")

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        near = (dense.distance >= 0) & (dense.distance < self.recent)
        return {"": (dense.probability * near).sum(-1)}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        return {"": block.mass_at_distances(0, self.recent)}

    def on_triton(self) -> tuple[Epilogue, ...]:
        return of_rows(start_sum, _update, finish_sum, "", distances=(0, self.recent), recent=self.recent)


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    distance = tile.rows.query[:, None] - tile.key[None, :]
    recent = (distance >= 0) & (distance < memory[1])
    return add_up(state, tl.sum(tl.where(recent, tile.probability, 0.0), 1))

"""How far back a query looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.epilogue import Epilogue, add_up, finish_sum, of_rows, start_sum
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.triton_language import jit, tl


@dataclass(frozen=True)
class mean_distance(Statistic):
    """Σ_j p_ij |i − j|, in tokens; a learned sink's share counts as distance 0."""

    kind = "scan"
    compares_positions = True
    arrays: ClassVar = {"": ArrayFacts(("head", "query"), "tokens")}
    source = "this toolkit's own choice of a standard quantity"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        return {"": (dense.probability * dense.distance.abs()).sum(-1)}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        # Every term is at least zero: nothing cancels, whatever the length.
        return {"": block.sum_over_keys(block.distance.abs().to(block.probability.dtype))}

    def on_triton(self) -> tuple[Epilogue, ...]:
        return of_rows(start_sum, _update, finish_sum, "")


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    distance = tl.abs(tile.rows.query[:, None] - tile.key[None, :])
    return add_up(state, tl.sum(tile.probability * distance.to(tl.float32), 1))

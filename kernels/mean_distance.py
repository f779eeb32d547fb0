"""How far back a query looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.epilogue import Epilogue, finish_sum, of_rows, start_sum
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.triton_language import jit, tl


@dataclass(frozen=True)
class mean_distance(Statistic):
    """Σ_j p_ij |i − j|, in tokens; a learned sink's share counts as distance 0."""

    kind = "scan"
    arrays: ClassVar = {"": ArrayFacts(("head", "query"), "tokens")}
    source = "this toolkit's own choice of a standard quantity"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        return {"": (dense.probability * dense.distance.abs()).sum(-1)}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        # Split where distances to the first query change sign: every sum below is of terms that are not negative,
        # so that nothing cancels, whatever the length.
        query = block.probability.shape[1]
        before = block.keys_between(block.key_start, block.query_start)
        near = block.keys_between(block.query_start, block.query_stop)
        after = block.keys_between(block.query_stop, block.key_stop)
        position = block.key_position
        row = torch.arange(query, device=position.device)
        total = (block.probability[..., near] * (block.query_position[:, None] - position[near]).abs()).sum(-1)
        weights = torch.stack([block.query_start - position[before], torch.ones_like(position[before])], 1)
        sums = block.probability[..., before] @ weights.to(block.probability.dtype)
        total += sums[..., 0] + row * sums[..., 1]
        if after.stop > after.start:
            weights = torch.stack([position[after] - block.query_stop, torch.ones_like(position[after])], 1)
            sums = block.probability[..., after] @ weights.to(block.probability.dtype)
            total += sums[..., 0] + (query - row) * sums[..., 1]
        return {"": total}

    def on_triton(self) -> tuple[Epilogue, ...]:
        return of_rows(start_sum, _update, finish_sum, "")


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    distance = tl.abs(tile.rows.query[:, None] - tile.key[None, :])
    return (state[0] + tl.sum(tile.probability * distance.to(tl.float32), 1),)

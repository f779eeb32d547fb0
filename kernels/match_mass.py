"""Attention to earlier occurrences of the query's token, or to what followed them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.epilogue import Epilogue, Layout, add_up, finish_sum, start_sum
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.triton_language import jit, tl


@dataclass(frozen=True)
class match_mass(Statistic):
    """Σ_j p_ij over earlier keys that hold the query's token (`duplicate`), or follow one that does (`induction`).

    Duplicate: token_j = token_i and j < i, so that the query's own position never counts. Induction: token_{j−1} =
    token_i and j ≤ i; j = i counts where the token before the query equals it. The call must carry token ids; what
    stood before the first key of a sliding cache counts where an earlier call has shown it.
    """

    by: Literal["duplicate", "induction"] = "duplicate"
    """Which keys count."""

    kind = "scan"
    compares_positions = True
    arrays: ClassVar = {"": ArrayFacts(("head", "query"), "probability")}
    source = "Olsson et al. 2022 (2209.11895): prefix matching and copying; mass per query is this toolkit's own form"
    needs_tokens = True

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        tokens = dense.call.tokens
        if tokens is None:
            raise UsageError("match_mass needs the token ids of the call")
        query_token = tokens[dense.query_position - dense.call.key_start]
        key_token = tokens if self.by == "duplicate" else torch.cat([tokens.new_full((1,), -1), tokens[:-1]])
        first = 1 if self.by == "duplicate" else 0
        match = (query_token[:, None] == key_token[None, :]) & (dense.distance >= first)
        return {"": (dense.probability * match).sum(-1)}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        if block.query_token is None or block.key_token is None or block.previous_token is None:
            raise UsageError("match_mass needs the token ids of the call")
        key_token = block.key_token if self.by == "duplicate" else block.previous_token
        match = block.query_token[:, None] == key_token[None, :]
        match = match & (block.distance >= (1 if self.by == "duplicate" else 0))
        return {"": block.sum_over_keys(match)}

    def on_triton(self) -> tuple[Epilogue, ...]:
        return (Epilogue(start_sum, _update, finish_sum, self._memory, lambda layout, memory: {"": memory[0]}),)

    def _memory(self, layout: Layout) -> tuple[Tensor | int, ...]:
        key_token = layout.key_token if self.by == "duplicate" else layout.previous_token
        if layout.query_token is None or key_token is None:
            raise UsageError("match_mass needs the token ids of the call")
        return layout.rows(), layout.query_token, key_token, 1 if self.by == "duplicate" else 0


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    rows = tile.rows
    index = tile.key - rows.key_offset
    query_token = tl.load(memory[1] + rows.index, mask=rows.inside, other=-2)
    key_token = tl.load(memory[2] + index, mask=(index >= 0) & (index < rows.num_keys), other=-3)
    match = query_token[:, None] == key_token[None, :]
    match &= rows.query[:, None] - tile.key[None, :] >= memory[3]
    return add_up(state, tl.sum(tl.where(match, tile.probability, 0.0), 1))

"""The largest logit of a query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.epilogue import Epilogue, of_rows
from probe.kernels.normaliser import Normaliser
from probe.kernels.scores import MASKED
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.triton_language import jit, tl


@dataclass(frozen=True)
class max_logit(Statistic):
    """max_j s_ij over the keys that query i sees, scaled and capped as the model does it; −inf where it sees none.

    A learned sink's logit does not count.
    """

    kind = "scan"
    arrays: ClassVar = {"": ArrayFacts(("head", "query"), "logit", merge="max")}
    source = "Han et al. 2023 (2308.16137): logit explosion at unseen distances; this toolkit's own form"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        return {"": dense.logit.amax(-1)}

    def per_query(self, normaliser: Normaliser) -> dict[str, Tensor]:
        return {} if normaliser.max_logit is None else {"": normaliser.max_logit}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        if block.max_logit is not None:
            return {}
        largest = block.log_probability.amax(-1)
        return {"": (largest + block.log_sum_exp).masked_fill(largest <= MASKED / 2, -torch.inf)}

    def on_triton(self) -> tuple[Epilogue, ...]:
        return of_rows(_start, _update, _finish, "")


@jit
def _start(SHAPE, CONSTANTS):
    return (tl.full([SHAPE.HEADS * SHAPE.QUERIES], -1e30, tl.float32),)


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    return (tl.maximum(state[0], tile.largest),)


@jit
def _finish(state, rows, memory, SHAPE, CONSTANTS):
    nothing = state[0] == -1e30
    value = tl.where(nothing, float("-inf"), state[0] + rows.log_sum_exp)
    # A maximum passes over NaN, the normaliser does not.
    value = tl.where(rows.log_sum_exp == rows.log_sum_exp, value, rows.log_sum_exp)
    tl.store(memory[0] + rows.offset, value, mask=rows.inside)

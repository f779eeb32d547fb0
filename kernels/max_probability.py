"""The key that a query attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.epilogue import Epilogue, of_rows
from probe.kernels.scores import MASKED
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.triton_language import jit, tl


@dataclass(frozen=True)
class max_probability(Statistic):
    """The largest p_ij of query i, and the position of its key (the lowest on a tie).

    A query that sees nothing has 0 and the key −1.
    """

    kind = "scan"
    arrays: ClassVar = {
        "": ArrayFacts(("head", "query"), "", merge="max"),
        "argmax_key": ArrayFacts(("head", "query"), "position", merge="argmax", meaning="its key"),
    }
    source = "a standard quantity; its key is the argmax of Wu et al. 2024 (2404.15574), sec. 2"

    def array_name(self, suffix: str) -> str:
        """Return the array's name; the key's position is called `argmax_key` alone."""
        return suffix if suffix == "argmax_key" else super().array_name(suffix)

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        largest = dense.probability.max(-1)
        nothing = ~dense.visible.any(-1)
        return {"": largest.values, "argmax_key": (dense.key_position[largest.indices]).masked_fill(nothing, -1)}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        # By the logarithm: probabilities of two different logits may round to the same number.
        largest = block.log_probability.max(-1)
        nothing = largest.values <= MASKED / 2
        key = (largest.indices + block.key_position[0]).masked_fill(nothing, -1)
        return {"": largest.values.exp(), "argmax_key": key}

    def on_triton(self) -> tuple[Epilogue, ...]:
        return of_rows(_start, _update, _finish, "", "argmax_key", dtypes=(torch.float32, torch.int64))


@jit
def _start(SHAPE, CONSTANTS):
    return (
        tl.full([SHAPE.HEADS * SHAPE.QUERIES], -1e30, tl.float32),
        tl.full([SHAPE.HEADS * SHAPE.QUERIES], -1, tl.int32),
    )


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    # Tiles come in the order of their keys, so that of equals the first stays.
    better = tile.largest > state[0]
    where = tl.where(tile.log_probability >= tile.largest[:, None], tile.key[None, :], 0x7FFFFFFF)
    return tl.where(better, tile.largest, state[0]), tl.where(better, tl.min(where, 1), state[1])


@jit
def _finish(state, rows, memory, SHAPE, CONSTANTS):
    # A maximum passes over NaN, the normaliser does not.
    finite = rows.log_sum_exp == rows.log_sum_exp
    tl.store(memory[0] + rows.offset, tl.where(finite, tl.exp(state[0]), rows.log_sum_exp), mask=rows.inside)
    tl.store(memory[1] + rows.offset, state[1].to(tl.int64), mask=rows.inside)

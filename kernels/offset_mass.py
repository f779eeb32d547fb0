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
from probe.kernels.epilogue import Epilogue, Layout
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.triton_language import jit, tl


@dataclass(frozen=True)
class offset_mass(Statistic):
    """Σ_i p_{i,i−δ} over all queries, for each distance δ below `num_offset` and each of `others`."""

    num_offset: int = 128
    """Every distance below this one."""
    others: tuple[int, ...] = ()
    """Further distances, ascending."""

    kind = "scan"
    compares_positions = True
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
        return {"": block.mass_of_offsets(self._offsets())}

    def coordinate(self, axis: str, size: int) -> np.ndarray[Any, Any] | None:
        """Return the distances."""
        return np.array(self._offsets(), dtype=np.int64) if axis == "offset" else None

    def _offsets(self) -> list[int]:
        return [*range(self.num_offset), *self.others]

    def on_triton(self) -> tuple[Epilogue, ...]:
        # As many distances at a time as the registers hold beside a tile.
        near = [(low, min(64, self.num_offset - low), low) for low in range(0, self.num_offset, 64)]
        far = [(offset, 1, index) for index, offset in enumerate(self.others, self.num_offset)]
        return tuple(self._stretch(*stretch) for stretch in near + far)

    def _stretch(self, low: int, count: int, index: int) -> Epilogue:
        """Return the epilogue of `count` consecutive distances, which stand in the array from `index` on."""
        width = max(16, 1 << (count - 1).bit_length())

        def collect(layout: Layout, memory: tuple[Any, ...]) -> dict[str, Tensor]:
            mass = memory[0].sum(0, dtype=torch.float64)[:, :count].float()
            return {"": torch.nn.functional.pad(mass, (index, len(self._offsets()) - index - count))}

        return Epilogue(
            _start,
            _update,
            _finish,
            lambda layout: (layout.partials(width), low, count),
            collect,
            lambda layout: (width,),
            distances=(low, low + count),
        )


@jit
def _start(SHAPE, CONSTANTS):
    return (tl.zeros([SHAPE.HEADS, CONSTANTS[0]], tl.float32),)


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    # Column δ of the skewed tile is the diagonal at distance low + δ.
    offset = tl.arange(0, CONSTANTS[0])
    column = tile.rows.query[:, None] - tile.key_start - memory[1] - offset[None, :]
    inside = (offset < memory[2])[None, :] & (column >= 0) & (column < SHAPE.KEYS)
    skewed = tl.gather(tile.probability, tl.where(inside, column, 0), 1)
    skewed = tl.where(inside, skewed, 0.0)
    return (state[0] + tl.sum(tl.reshape(skewed, [SHAPE.HEADS, SHAPE.QUERIES, CONSTANTS[0]]), 1),)


@jit
def _finish(state, rows, memory, SHAPE, CONSTANTS):
    head = rows.head + tl.arange(0, SHAPE.HEADS)
    place = ((rows.block * rows.num_heads + head).to(tl.int64) * CONSTANTS[0])[:, None]
    tl.store(memory[0] + place + tl.arange(0, CONSTANTS[0])[None, :], state[0])

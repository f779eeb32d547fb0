"""Attention by distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from probe.kernels.block import Block, Place
from probe.kernels.dense import Dense
from probe.kernels.epilogue import Epilogue, Layout, by_head
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.tally import Tally
from probe.kernels.triton_language import jit, tl

NUM_BINS = 42
"""Distances up to 2^41."""


@dataclass(frozen=True)
class distance_histogram(Statistic):
    """Σ_i Σ_j p_ij over the pairs whose |i − j| falls in {0}, [1, 2), [2, 4), [4, 8), …

    There are as many bins as the last position needs, whether or not a window leaves some empty, so that a model's
    layers have the same.
    """

    kind = "scan"
    compares_positions = True
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
        return {"": block.mass_of_bins([*(low for low, _ in _bins()), 1 << NUM_BINS])}

    def tally(self) -> Tally:
        """Return the bins."""
        return _Bins(self)

    def coordinate(self, axis: str, size: int) -> np.ndarray[Any, Any] | None:
        """Return the bins' lower edges."""
        return np.array([low for low, _ in _bins()[:size]], dtype=np.int64) if axis == "distance_bin" else None

    def on_triton(self) -> tuple[Epilogue, ...]:
        return (Epilogue(_start, _update, _finish, lambda layout: (layout.partials(32),), _collect),)


def _bins() -> list[tuple[int, int]]:
    return [(0, 1), *((1 << power, 2 << power) for power in range(NUM_BINS - 1))]


class _Bins(Tally):
    """Keeps the bins that the last position needs."""

    def add(self, parts: dict[str, Tensor], place: Place) -> None:
        """Add a block's bins."""
        num_bins = sum(low < max(place.query_stop, place.key_stop) for low, _ in _bins())
        super().add({"": parts[""][:, :num_bins]}, place)

    merge = Tally.merge


def _collect(layout: Layout, memory: tuple[Any, ...]) -> dict[str, Tensor]:
    call = layout.call
    last = max(call.query_start + call.num_queries, call.key_start + call.num_keys) - 1
    num_bins = sum(low <= last for low, _ in _bins())
    return {"": memory[0].sum(0, dtype=torch.float64)[:, :num_bins].float()}


@jit
def _start(SHAPE, CONSTANTS):
    return (tl.zeros([SHAPE.HEADS, 32], tl.float32),)


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    rows = tile.rows
    histogram = state[0]
    bins = tl.arange(0, 32)[None, :]
    ahead = rows.query_start + SHAPE.QUERIES - 1 - tile.key_start
    behind = rows.query_start - (tile.key_start + SHAPE.KEYS - 1)
    nearest = _bin(tl.maximum(tl.maximum(behind, -ahead), 0))
    farthest = _bin(tl.maximum(tl.abs(ahead), tl.abs(behind)))
    if nearest == farthest:
        histogram += tl.where(bins == nearest, by_head(tile.mass, SHAPE)[:, None], 0.0)
    else:
        distance = tl.abs(rows.query[:, None] - tile.key[None, :])
        for i in range(nearest, farthest + 1):
            low = (1 << i) >> 1
            inside = (distance >= low) & (distance < tl.maximum(2 * low, 1))
            mass = by_head(tl.sum(tl.where(inside, tile.probability, 0.0), 1), SHAPE)
            histogram += tl.where(bins == i, mass[:, None], 0.0)
    return (histogram,)


@jit
def _bin(distance):
    """Return the index of a distance's bin: 0 for 0, 1 for 1, 2 for 2 and 3, …; the exponent of a float64."""
    exponent = distance.to(tl.float64).to(tl.int64, bitcast=True) >> 52
    return tl.maximum(exponent - 1022, 0).to(tl.int32)


@jit
def _finish(state, rows, memory, SHAPE, CONSTANTS):
    head = rows.head + tl.arange(0, SHAPE.HEADS)
    place = ((rows.block * rows.num_heads + head).to(tl.int64) * 32)[:, None] + tl.arange(0, 32)[None, :]
    tl.store(memory[0] + place, state[0])

"""The whole attention pattern of each head, as a coarse picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.block import Block, Place
from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.epilogue import Epilogue, Layout, add, finish_nothing, start_nothing
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.tally import Tally
from probe.kernels.triton_language import jit, tl
from probe.kernels.visibility import Visibility


@dataclass(frozen=True)
class attention_map(Statistic):
    """Over cells of equal blocks of queries and keys: the mean over a cell's queries of Σ_j p_ij, and its largest p_ij.

    A block is the smallest power of two of positions with which the grid has at most `grid` rows and columns; rows and
    columns reach up to the last position that was seen. A cell's mean is over the queries that were seen.
    """

    grid: int = 256
    """Most rows and columns."""

    kind = "scan"
    arrays: ClassVar = {
        "": ArrayFacts(("head", "query_block", "key_block"), "probability", merge="sum"),
        "max": ArrayFacts(("head", "query_block", "key_block"), "probability", merge="max", meaning="largest p_ij"),
    }
    source = "this toolkit's own"

    def __post_init__(self) -> None:
        if not 2 <= self.grid <= 4096 or self.grid % 2:
            raise UsageError(f"attention_map: grid is even and between 2 and 4,096, not {self.grid}")

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        tokens = self._tokens(1 + int(max(dense.query_position[-1], dense.key_position[-1])))
        query_block, key_block = dense.query_position // tokens, dense.key_position // tokens
        # Blocks of queries first, then blocks of keys: a sum of sums, a maximum of maxima.
        rows = [dense.probability[:, query_block == q] for q in range(int(query_block[-1]) + 1)]
        sums = torch.stack([row.sum(1) / max(row.shape[1], 1) for row in rows], 1)
        maxima = torch.stack([torch.nn.functional.pad(row, (0, 0, 0, 1)).amax(1) for row in rows], 1)
        columns = [key_block == k for k in range(int(key_block[-1]) + 1)]
        mean = torch.stack([sums[..., column].sum(-1) for column in columns], -1)
        largest = torch.stack([torch.nn.functional.pad(maxima[..., c], (0, 1)).amax(-1) for c in columns], -1)
        return {"": mean, "max": largest}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        """Return cells as small as the block has them: theirs depend on the length, so that the tally joins them."""
        sums, largest = block.cells()
        return {"": sums, "max": largest}

    def on_triton(self) -> tuple[Epilogue, ...]:
        epilogue = Epilogue(
            start_nothing,
            _update,
            finish_nothing,
            self._memory,
            _collect,
            self._constants,
            # Cutting a tile into cells costs more registers than there are, so that a tile is no wider than one.
            most_keys=self._tokens_of,
        )
        return (epilogue,)

    def tally(self) -> Tally:
        """Return the grid."""
        return _Grid(self)

    def _tokens(self, extent: int) -> int:
        tokens = 1
        while tokens * self.grid < extent:
            tokens *= 2
        return tokens

    def _tokens_of(self, call: Call) -> int:
        return self._tokens(max(call.query_start + call.num_queries, call.key_start + call.num_keys))

    def _memory(self, layout: Layout) -> tuple[Tensor | int, ...]:
        call = layout.call
        stops = call.query_start + call.num_queries, call.key_start + call.num_keys
        tokens = self._tokens_of(call)
        rows, columns = (
            (stop - 1) // tokens - start // tokens + 1
            for start, stop in zip((call.query_start, call.key_start), stops, strict=True)
        )
        sums = layout.sums(rows, columns)
        return sums, torch.zeros(sums.shape, device=sums.device), tokens, rows, columns

    def _constants(self, layout: Layout) -> tuple[int, ...]:
        tokens = self._tokens_of(layout.call)
        return min(tokens, layout.shape.QUERIES), min(tokens, layout.shape.KEYS)


def _collect(layout: Layout, memory: tuple[Any, ...]) -> dict[str, Tensor]:
    sums, largest = layout.total(memory[0]), memory[1]
    # A maximum passes over NaN, a sum does not.
    return {"": sums, "max": torch.where(sums.isnan(), sums, largest)}


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    rows = tile.rows
    HEADS: tl.constexpr = SHAPE.HEADS
    # Cells of the tile: parts of it where cells are small, itself where they are larger.
    ROWS: tl.constexpr = SHAPE.QUERIES // CONSTANTS[0]
    COLUMNS: tl.constexpr = SHAPE.KEYS // CONSTANTS[1]
    if COLUMNS == 1:
        mass = tile.mass
        largest = tile.largest
    else:
        mass = tl.sum(tl.reshape(tile.probability, [HEADS, SHAPE.QUERIES, COLUMNS, CONSTANTS[1]]), 3)
        largest = tl.max(tl.reshape(tile.log_probability, [HEADS, SHAPE.QUERIES, COLUMNS, CONSTANTS[1]]), 3)
    mass = tl.sum(tl.reshape(mass, [HEADS, ROWS, CONSTANTS[0], COLUMNS]), 2)
    largest = tl.exp(tl.max(tl.reshape(largest, [HEADS, ROWS, CONSTANTS[0], COLUMNS]), 2))
    head = (rows.head + tl.arange(0, HEADS))[:, None, None]
    row = (rows.query_start // CONSTANTS[0] + tl.arange(0, ROWS)) * CONSTANTS[0] // memory[2]
    column = (tile.key_start // CONSTANTS[1] + tl.arange(0, COLUMNS)) * CONSTANTS[1] // memory[2]
    row = (row - rows.query_offset // memory[2])[None, :, None]
    column = (column - rows.key_offset // memory[2])[None, None, :]
    inside = (row >= 0) & (row < memory[3]) & (column >= 0) & (column < memory[4]) & (head >= 0)
    place = (head.to(tl.int64) * memory[3] + row) * memory[4] + column
    add(memory[0] + place, mass, inside & (mass != 0.0))
    tl.atomic_max(memory[1] + place, largest, mask=inside & (largest > 0.0), sem="relaxed")
    return state


class _Grid(Tally):
    """Sums and maxima of cells, and how many queries each row of cells has; doubles its blocks when it overflows."""

    def __init__(self, statistic: attention_map) -> None:
        super().__init__(statistic)
        self.statistic = statistic
        self.grid = statistic.grid
        self.tokens = 1
        self._sum = self._largest = torch.empty(0)
        self._count = torch.zeros(self.grid, dtype=torch.int64)
        self._query_stop = self._key_stop = 0

    def begin(self, call: Call, visibility: Visibility) -> None:
        """Grow to the call's last position."""
        self.grow(max(call.query_start + call.num_queries, call.key_start + call.num_keys))

    @property
    def grain(self) -> int:
        """Positions along a cell."""
        return self.tokens

    def add(self, parts: dict[str, Tensor], place: Place) -> None:
        """Join a block's cells to larger ones and add them."""
        self.grow(max(place.query_stop, place.key_stop))
        tokens, column = self.tokens // place.grain, place.key_start // place.grain
        sums, largest = [], []
        for row in _cut(place.query_start // place.grain, -(-place.query_stop // place.grain), tokens):
            sums.append(_columns(parts[""][:, row].sum(1), column, tokens).sum(-1))
            largest.append(_columns(parts["max"][:, row].amax(1), column, tokens).amax(-1))
        extent = (place.query_start, place.query_stop), (place.key_start, place.key_stop)
        self.add_cells(torch.stack(sums, 1), torch.stack(largest, 1), *extent)

    def take_parts(self, parts: dict[str, Tensor], call: Call) -> None:
        """Add the cells of a call, of the size that its last position asks for."""
        queries = call.query_start, call.query_start + call.num_queries
        keys = call.key_start, call.key_start + call.num_keys
        self.grow(max(queries[1], keys[1]))
        self.add_cells(parts[""], parts["max"], queries, keys)

    def take_reference(self, arrays: dict[str, Tensor], dense: Dense) -> None:
        """Take the reference's means back to sums."""
        query = dense.query_position
        keys = int(dense.key_position[0]), int(dense.key_position[-1]) + 1
        self.grow(max(int(query[-1]) + 1, keys[1]))
        count = torch.bincount(query // self.tokens)[:, None]
        rows, columns = slice(int(query[0]) // self.tokens, None), slice(keys[0] // self.tokens, None)
        sums, largest = (arrays[""] * count)[:, rows, columns], arrays["max"][:, rows, columns]
        self.add_cells(sums, largest, (int(query[0]), int(query[-1]) + 1), keys)

    def grow(self, extent: int) -> None:
        """Double the blocks until the grid reaches the position `extent`."""
        while self.tokens * self.grid < extent:
            self._double()

    def add_cells(self, sums: Tensor, largest: Tensor, queries: tuple[int, int], keys: tuple[int, int]) -> None:
        """Add cells of `tokens` positions, [head, query_block, key_block], from the first query's and key's on.

        Calls for the same queries, with other keys, come one after the other.
        """
        if not self._sum.numel():
            shape = (len(sums), self.grid, self.grid)
            self._sum = sums.new_zeros(shape)
            self._largest = sums.new_zeros(shape)
        if queries[1] > self._query_stop:
            first = max(queries[0], self._query_stop) if self._query_stop else queries[0]
            self._count += torch.bincount(torch.arange(first, queries[1]) // self.tokens, minlength=self.grid)
            self._query_stop = queries[1]
        self._key_stop = max(self._key_stop, keys[1])
        row, column = queries[0] // self.tokens, keys[0] // self.tokens
        cells = (slice(None), slice(row, row + sums.shape[1]), slice(column, column + sums.shape[2]))
        self._sum[cells] += sums
        torch.maximum(self._largest[cells], largest, out=self._largest[cells])

    def state(self) -> dict[str, Tensor]:
        """Return sums and maxima, how many queries each row has, and what they reach to."""
        if not self._sum.numel():
            return {}
        reach = torch.tensor([self.tokens, self._query_stop, self._key_stop])
        return {"sum": self._sum, "max": self._largest, "count": self._count, "reach": reach}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add another grid's cells, of other queries, their blocks doubled until they are as large as its own."""
        tokens, query_stop, key_stop = state["reach"].tolist()
        self.grow(tokens * self.grid)
        other = _Grid(self.statistic)
        other._sum, other._largest, other._count, other.tokens = state["sum"], state["max"], state["count"], tokens
        other.grow(self.tokens * self.grid)
        held = bool(self._sum.numel())
        self._sum = self._sum + other._sum.to(self._sum) if held else other._sum
        self._largest = torch.maximum(self._largest, other._largest.to(self._largest)) if held else other._largest
        self._count = self._count + other._count
        self._query_stop, self._key_stop = max(self._query_stop, query_stop), max(self._key_stop, key_stop)

    def finish(self, key_start: int, key_stop: int) -> dict[str, Tensor]:
        """Return the cells up to the last query and the last key."""
        if not self._sum.numel():
            return {}
        rows, columns = -(-self._query_stop // self.tokens), -(-self._key_stop // self.tokens)
        mean = self._sum.cpu() / self._count.clamp_min(1)[None, :, None]
        return {"": mean[:, :rows, :columns].contiguous(), "max": self._largest.cpu()[:, :rows, :columns].contiguous()}

    @property
    def block_tokens(self) -> int | None:
        """Positions in a cell's side."""
        return self.tokens

    def coordinate(self, axis: str, size: int) -> np.ndarray[Any, Any] | None:
        """Return the blocks' first positions."""
        return np.arange(size) * self.tokens if axis in ("query_block", "key_block") else None

    def _double(self) -> None:
        half = self.grid // 2
        pairs = (-1, half, 2, half, 2)
        if self._sum.numel():
            merged_sum = self._sum.view(pairs).sum((2, 4))
            merged_largest = self._largest.view(pairs).amax((2, 4))
            self._sum, self._largest = torch.zeros_like(self._sum), torch.zeros_like(self._largest)
            self._sum[:, :half, :half] = merged_sum
            self._largest[:, :half, :half] = merged_largest
        count = self._count.view(half, 2).sum(1)
        self._count = torch.cat([count, torch.zeros_like(count)])
        self.tokens *= 2


def _cut(start: int, stop: int, tokens: int) -> list[slice]:
    cells = range(start // tokens, (stop - 1) // tokens + 1)
    return [slice(max(cell * tokens, start) - start, min((cell + 1) * tokens, stop) - start) for cell in cells]


def _columns(keys: Tensor, start: int, tokens: int) -> Tensor:
    before, after = start % tokens, -(start + keys.shape[-1]) % tokens
    return torch.nn.functional.pad(keys, (before, after)).view(len(keys), -1, tokens)

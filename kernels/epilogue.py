"""What a statistic does inside the Triton scan: three small functions, which the scan composes at compile time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.triton_language import jit, tl
from probe.kernels.visibility import Visibility


class Shape(NamedTuple):
    """How much a program takes at a time; powers of two, known when the kernel is compiled."""

    HEADS: Any
    """Query heads, all of one key-value head."""
    QUERIES: Any
    """Queries; blocks of them begin at positions that are multiples of it."""
    KEYS: Any
    """Keys of a tile; tiles begin at positions that are multiples of it."""


class Tile(NamedTuple):
    """What `update` sees of a tile of scores, inside the kernel. Rows are `HEADS` heads × `QUERIES` queries.

    Reductions that several statistics share are made once; what no statistic reads is compiled away.
    """

    probability: Any
    """p_ij [row, key], zero where the query does not see the key."""
    log_probability: Any
    """log p_ij [row, key]; very negative, never −inf, where the query does not see the key."""
    mass: Any
    """Σ over the tile's keys of p_ij [row]."""
    column_mass: Any
    """Σ over each head's queries of p_ij [head, key]."""
    largest: Any
    """Largest log p_ij [row]."""
    key: Any
    """Position of each key [key]."""
    key_start: Any
    """Position of the first key, a multiple of `KEYS`."""
    rows: Any
    """The `Rows` of the tile."""


class Rows(NamedTuple):
    """A program's rows, inside the kernel."""

    offset: Any
    """Where each row's entry stands in an array [head, query], in int64 [row]."""
    inside: Any
    """False for rows that are no query of the call [row]."""
    index: Any
    """Index of each row's query in the call [row]."""
    query: Any
    """Position of each row's query [row]."""
    log_sum_exp: Any
    """log Z of each row [row]; NaN where a logit is, which a maximum would pass over."""
    head: Any
    """Index of the program's first head."""
    block: Any
    """Index of the program's block of queries."""
    num_heads: Any
    """Query heads of the call."""
    query_start: Any
    """Position of the program's first query, a multiple of `QUERIES`; it may lie before the call's first."""
    query_offset: Any
    """Position of the call's first query."""
    num_queries: Any
    """Queries of the call."""
    key_offset: Any
    """Position of the call's first key."""
    num_keys: Any
    """Keys of the call."""


@dataclass(frozen=True)
class Layout:
    """How a call was cut into programs, for whoever allocates what they write. The host's side of `Rows`."""

    call: Call
    """The call."""
    shape: Shape
    """What a program takes at a time."""
    num_blocks: int
    """Blocks of queries."""
    deterministic: bool
    """Whether sums that many programs add to are kept in 64-bit integers."""
    finite: Bool[Tensor, "head"]
    """False for heads some of whose logits are NaN or infinite, which no integer can say."""
    visibility: Visibility
    """Which keys each query sees."""
    query_token: Int[Tensor, "query"] | None = None
    """Token ids of the queries, where known."""
    key_token: Int[Tensor, "key"] | None = None
    """Token ids of the keys, where known."""
    previous_token: Int[Tensor, "key"] | None = None
    """Token ids before each key, where known; −1 before the first."""

    def rows(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an array [head, query] to be written by `finish`."""
        return self._empty((self.call.num_heads, self.call.num_queries), dtype)

    def partials(self, *shape: int) -> Tensor:
        """Return an array [block, head, …] to which each program writes its own part."""
        return self._empty((self.num_blocks, self.call.num_heads, *shape), torch.float32)

    def sums(self, *shape: int) -> Tensor:
        """Return zeros [head, …] to which `add` adds."""
        dtype = torch.int64 if self.deterministic else torch.float32
        return torch.zeros((self.call.num_heads, *shape), dtype=dtype, device=self.call.query.device)

    def total(self, sums: Tensor) -> Tensor:
        """Return what `add` added up, in float32."""
        if sums.is_floating_point():
            return sums
        total = (sums.double() * 2.0**-FIXED_POINT_BITS).float()
        total[~self.finite] = torch.nan
        return total

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.call.query.device)


NO_END = 2**31 - 1
"""Stands for a position that is never reached."""
FIXED_POINT_BITS = 36
"""Binary places of a deterministic sum: 1.5e-11 apart, up to 1.3e8."""


@dataclass(frozen=True)
class Epilogue:
    """A statistic's part of the Triton scan. All that the kernel calls are `@jit` functions."""

    start: Any
    """`start(SHAPE, CONSTANTS) → state`: a tuple of tensors, in registers from the first tile to the last."""
    update: Any
    """`update(state, tile: Tile, memory, SHAPE, CONSTANTS) → state`."""
    finish: Any
    """`finish(state, rows: Rows, memory, SHAPE, CONSTANTS)`: store what the state holds."""
    memory: Callable[[Layout], tuple[Tensor | int, ...]]
    """Allocates what the kernel reads and writes; it sees the tuple as `memory`, tensors as pointers."""
    collect: Callable[[Layout, tuple[Any, ...]], dict[str, Tensor]]
    """Makes the statistic's arrays of one call out of that memory."""
    constants: Callable[[Layout], tuple[int, ...]] = lambda layout: ()
    """Integers known when the kernel is compiled."""
    most_keys: Callable[[Call], int] | None = None
    """Widest tile for which the registers hold what it does; None where any will do."""
    distances: tuple[int, int] | None = None
    """`(low, high)` where only keys with low ≤ i − j < high matter: it is then run over the tiles with such keys alone,
    and may see others beside them. None where all matter."""


def of_rows(
    start: Any,
    update: Any,
    finish: Any,
    *suffixes: str,
    dtypes: tuple[torch.dtype, ...] = (),
    distances: tuple[int, int] | None = None,
    **parameters: int,
) -> tuple[Epilogue, ...]:
    """Return the epilogue of arrays [head, query]: memory is one of each, then the parameters as integers."""
    kinds = dtypes or (torch.float32,) * len(suffixes)
    epilogue = Epilogue(
        start,
        update,
        finish,
        lambda layout: (*(layout.rows(kind) for kind in kinds), *parameters.values()),
        lambda layout, memory: dict(zip(suffixes, memory, strict=False)),
        distances=distances,
    )
    return (epilogue,)


@jit
def start_sum(SHAPE, CONSTANTS):
    """Begin a sum for each row, and what was lost of it."""
    return tl.zeros([SHAPE.HEADS * SHAPE.QUERIES], tl.float32), tl.zeros([SHAPE.HEADS * SHAPE.QUERIES], tl.float32)


@jit
def add_up(state, value):
    """Add to a sum as Kahan (1965) does: thousands of equal parts would all be rounded to the same side."""
    part = value - state[1]
    total = state[0] + part
    return total, (total - state[0]) - part


@jit
def finish_sum(state, rows, memory, SHAPE, CONSTANTS):
    """Store a sum for each row."""
    tl.store(memory[0] + rows.offset, state[0], mask=rows.inside)


@jit
def start_nothing(SHAPE, CONSTANTS):
    """Keep nothing in registers."""
    return ()


@jit
def finish_nothing(state, rows, memory, SHAPE, CONSTANTS):
    """Store nothing: the updates did."""


@jit
def by_head(values, SHAPE):
    """Sum values [row] over each head's queries: [head]."""
    return tl.sum(tl.reshape(values, [SHAPE.HEADS, SHAPE.QUERIES]), 1)


@jit
def add(pointer, value, mask):
    """Add to memory that other programs add to as well: in float32, or in fixed point where the memory is int64."""
    if pointer.dtype.element_ty == tl.int64:
        tl.atomic_add(pointer, (value * (1 << 36)).to(tl.int64), mask=mask, sem="relaxed")
    else:
        tl.atomic_add(pointer, value, mask=mask, sem="relaxed")

"""What each key receives."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

from torch import Tensor

from probe.errors import UsageError
from probe.kernels.block import Block
from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.epilogue import NO_END, Epilogue, Layout, add, finish_nothing, start_nothing
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.tally import Tally
from probe.kernels.triton_language import jit, tl
from probe.kernels.visibility import Visibility


@dataclass(frozen=True)
class received_mass(Statistic):
    """Σ_i p_ij over the queries at positions below `horizon` (all, where None), and how many of them can see key j.

    Their quotient is Gu et al.'s importance of key j; they take horizon 64. Not comparable between keys without the
    number of queries, since early keys are seen by more.
    """

    horizon: int | None = None
    """Position of the first query that no longer counts."""

    kind = "scan"
    arrays: ClassVar = {
        "": ArrayFacts(("head", "key"), "probability", merge="sum"),
        "num_queries": ArrayFacts(("key",), "queries", merge="sum", meaning="number of those queries that see key j"),
    }
    source = "Gu et al. 2024 (2410.10781), the sink metric; Zhang et al. 2023 (2306.14048) sum the same columns"

    def __post_init__(self) -> None:
        if self.horizon is not None and self.horizon < 1:
            raise UsageError(f"received_mass: horizon is at least 1, not {self.horizon}")

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        counted = dense.query_position < (self.horizon or inf)
        return {"": dense.probability[:, counted].sum(1), "num_queries": dense.visible[counted].sum(0)}

    @property
    def can_pool(self) -> bool:
        """With a horizon, the first keys are looked at one by one."""
        return self.horizon is None

    def wants(self, query_start: int) -> bool:
        """Return whether a query from this position on still counts."""
        return self.horizon is None or query_start < self.horizon

    def blocked(self, block: Block) -> dict[str, Tensor]:
        probability = block.probability
        if self.horizon is not None:
            probability = probability * (block.query_position < self.horizon)[:, None]
        return {"": probability.sum(1)}

    def tally(self) -> Tally:
        """Return what each key received."""
        return _Received(self)

    def on_triton(self) -> tuple[Epilogue, ...]:
        end = NO_END if self.horizon is None else self.horizon
        epilogue = Epilogue(
            start_nothing,
            _update,
            finish_nothing,
            lambda layout: (layout.sums(layout.call.num_keys), end),
            self._collect,
            lambda layout: (0 if self.horizon is None else 1,),
        )
        return (epilogue,)

    def _collect(self, layout: Layout, memory: tuple[Any, ...]) -> dict[str, Tensor]:
        start = layout.call.query_start
        stop = min(start + layout.call.num_queries, NO_END if self.horizon is None else self.horizon)
        keys = layout.call.key_start, layout.call.key_start + layout.call.num_keys
        return {"": layout.total(memory[0]), "num_queries": layout.visibility.num_queries(start, stop, *keys)}


class _Received(Tally):
    """Counts the queries too, once for each call: that needs no block."""

    def __init__(self, statistic: received_mass) -> None:
        super().__init__(statistic)
        self.horizon = statistic.horizon

    def begin(self, call: Call, visibility: Visibility) -> None:
        """Count the call's queries that see each key."""
        stop = call.query_start + call.num_queries
        stop = stop if self.horizon is None else min(stop, self.horizon)
        if stop > call.query_start:
            num = visibility.num_queries(call.query_start, stop, call.key_start, call.key_start + call.num_keys)
            self.put({"num_queries": num}, call.key_start)

    merge = Tally.merge


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    rows = tile.rows
    if rows.query_start < memory[1]:
        mass = tile.column_mass
        if CONSTANTS[0] == 1:
            counted = tl.where((rows.query < memory[1])[:, None], tile.probability, 0.0)
            mass = tl.sum(tl.reshape(counted, [SHAPE.HEADS, SHAPE.QUERIES, SHAPE.KEYS]), 1)
        index = tile.key - rows.key_offset
        place = (rows.head + tl.arange(0, SHAPE.HEADS)).to(tl.int64)[:, None] * rows.num_keys + index[None, :]
        add(memory[0] + place, mass, ((index >= 0) & (index < rows.num_keys))[None, :] & (mass != 0.0))
    return state

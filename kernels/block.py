"""Probabilities of a block of queries over a block of keys, as statistics receive them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.kernels.normaliser import Normaliser
from probe.kernels.visibility import Visibility
from probe.sample import Span


@dataclass(frozen=True, eq=False)
class Block:
    """What one block of consecutive queries gives to one block of consecutive keys. Only `room` may be written."""

    query_start: int
    """Position of the first query."""
    key_start: int
    """Position of the first key."""
    probability: Float[Tensor, "head query key"]
    """p_ij, zero where the query does not see the key. Rows are followed by zeros in memory, see `diagonal_sums`."""
    log_probability: Float[Tensor, "head query key"]
    """log p_ij in nats; very negative, never −inf, where the query does not see the key."""
    room: Float[Tensor, "head query key"]
    """Memory for a product of this size, for one statistic at a time: fresh memory for each block would be slower, and
    would leave the heap in pieces."""
    normaliser: Normaliser
    """Of the same queries, over all their keys."""
    value: Float[Tensor, "kv_head key value_channel"]
    """Values of the same keys, in the model's dtype."""
    query_token: Int[Tensor, "query"] | None = None
    """Token ids of the queries, where known."""
    key_token: Int[Tensor, "key"] | None = None
    """Token ids of the keys, where known."""
    previous_token: Int[Tensor, "key"] | None = None
    """Token id that stands before each key, where known; −1 before the first."""
    spans: Sequence[Span] = ()
    """The sample's spans."""
    causal: bool = True
    """Whether keys after the query are hidden."""
    window: int | None = None
    """Number of positions that a query sees, its own included."""
    visibility: Visibility | None = None
    """Which keys each query of the call sees."""

    @property
    def query_stop(self) -> int:
        """Position after the last query."""
        return self.query_start + self.probability.shape[1]

    @property
    def key_stop(self) -> int:
        """Position after the last key."""
        return self.key_start + self.probability.shape[2]

    @property
    def query_position(self) -> Int[Tensor, "query"]:
        """Positions of the queries."""
        return torch.arange(self.query_start, self.query_stop, device=self.probability.device)

    @property
    def key_position(self) -> Int[Tensor, "key"]:
        """Positions of the keys."""
        return torch.arange(self.key_start, self.key_stop, device=self.probability.device)

    def keys_between(self, start: int, stop: int) -> slice:
        """Return the slice of the block's keys that stand in `[start, stop)`."""
        first = min(max(start - self.key_start, 0), self.probability.shape[2])
        return slice(first, max(first, min(stop - self.key_start, self.probability.shape[2])))

    def diagonal_sums(self, low: int, high: int) -> tuple[int, Float[Tensor, "head offset"]]:
        """Return Σ_i p_{i, i−δ} over the block's queries for every distance δ in `[low, high)` that occurs in it.

        The first of the distances that occur is returned beside the sums, which ascend in δ.
        """
        head, query, key = self.probability.shape
        nearest = self.query_start - (self.key_stop - 1)
        low, high = max(low, nearest), min(high, self.query_stop - self.key_start)
        if high <= low:
            return low, self.probability.new_zeros(head, 0)
        # Each step down a row is one step right: a column of this view is one diagonal. What it reads outside of the
        # matrix is the zeros between the rows.
        probability, stride = self.probability, self.probability.stride()
        columns = query + key - 1
        view = probability.as_strided(
            (head, query, columns),
            (stride[0], stride[1] + 1, 1),
            probability.storage_offset() - (query - 1),
        )
        last = self.query_stop - 1 - self.key_start
        sums = view[:, :, last - high + 1 : last - low + 1].sum(1)
        return low, sums.flip(1)

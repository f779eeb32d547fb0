"""Probabilities of a block of queries over a block of keys, as statistics receive them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.kernels.normaliser import Normaliser
from probe.sample import Span

CHUNK_KEYS = 8192
"""Values that are turned into float32 at a time."""


@dataclass(frozen=True)
class Place:
    """The positions that a block's contributions are of."""

    query_start: int
    """Position of the first query."""
    query_stop: int
    """Position after the last query."""
    key_start: int
    """Position of the first key."""
    key_stop: int
    """Position after the last key."""
    grain: int = 1
    """Positions along each side of the cells that `Block.cells` gives. Cells begin at multiples of it."""


@dataclass(frozen=True, eq=False)
class Block:
    """What one block of consecutive queries gives to one block of consecutive keys. Only `room` may be written."""

    query_start: int
    """Position of the first query."""
    key_start: int
    """Position of the first key."""
    probability: Float[Tensor, "head query key"]
    """p_ij, zero where the query does not see the key. Rows are followed by zeros in memory, see `_diagonal_sums`."""
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
    logit_direction: Float[Tensor, "head query value_channel"] | None = None
    """The queries' part of `Call.logit_direction`."""

    @property
    def place(self) -> Place:
        """Where the block lies."""
        return Place(self.query_start, self.query_stop, self.key_start, self.key_stop)

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

    @property
    def distance(self) -> Int[Tensor, "query key"]:
        """Query position minus key position."""
        return self.query_position[:, None] - self.key_position[None, :]

    @property
    def max_logit(self) -> Float[Tensor, "head query"] | None:
        """Largest logit over all keys, where it is known beforehand."""
        return self.normaliser.max_logit

    @property
    def log_sum_exp(self) -> Float[Tensor, "head query"]:
        """log Z over all keys."""
        return self.normaliser.log_sum_exp

    def sum_over_keys(self, weight: Tensor) -> Float[Tensor, "head query"]:
        """Return Σ_j p_ij w_ij for weights that broadcast to [head, query, key]."""
        return torch.mul(self.probability, weight, out=self.room).sum(-1)

    def output(self, start: int, stop: int) -> Float[Tensor, "head query value_channel"]:
        """Return Σ_j p_ij v_j over a stretch of the block's keys, by their indices in the block."""
        head, query, _ = self.probability.shape
        kv_head, _, width = self.value.shape
        output = self.probability.new_zeros(kv_head, head // kv_head * query, width)
        for first in range(start, stop, CHUNK_KEYS):
            last = min(first + CHUNK_KEYS, stop)
            probability = self.probability[..., first:last].reshape(kv_head, -1, last - first)
            output += probability @ self.value[:, first:last].to(probability.dtype)
        return output.view(head, query, width)

    def mass_of_keys(self, start: int, stop: int) -> Float[Tensor, "head query"]:
        """Return Σ_j p_ij over the keys at positions in `[start, stop)`."""
        return self.probability[..., self.keys_between(start, stop)].sum(-1)

    def mass_at_distances(self, low: int, high: int) -> Float[Tensor, "head query"]:
        """Return Σ_j p_ij over the keys with `low ≤ i − j < high`."""
        keys = self.keys_between(self.query_start - high + 1, self.query_stop - low)
        distance = self.query_position[:, None] - self.key_position[keys]
        return (self.probability[..., keys] * ((distance >= low) & (distance < high))).sum(-1)

    def mass_of_offsets(self, offsets: Sequence[int]) -> Float[Tensor, "head offset"]:
        """Return Σ_i p_{i, i−δ} for each δ of `offsets`, which ascend."""
        mass = self.probability.new_zeros(self.probability.shape[0], len(offsets))
        begin = 0
        for index, offset in enumerate(offsets):
            if index + 1 == len(offsets) or offsets[index + 1] != offset + 1:
                first, sums = self._diagonal_sums(offsets[begin], offset + 1)
                column = begin + first - offsets[begin]
                mass[:, column : column + sums.shape[1]] = sums
                begin = index + 1
        return mass

    def mass_of_bins(self, edges: Sequence[int]) -> Float[Tensor, "head bin"]:
        """Return Σ_i Σ_j p_ij over the pairs with `edges[b] ≤ |i − j| < edges[b + 1]`, for each b.

        The edges are 0, 1, 2, 4, 8, … up to one that no distance reaches.
        """
        nearest, farthest = self.query_start - self.key_stop + 1, self.query_stop - 1 - self.key_start
        reach = max(farthest, 0 if self.causal else -nearest, 0)
        reach = reach if self.window is None else min(reach, self.window - 1)
        first, sums = self._diagonal_sums(-reach, reach + 1)

        def index(distance: int) -> int:
            return min(max(distance - first, 0), sums.shape[1])

        mass = sums.new_zeros(sums.shape[0], len(edges) - 1)
        for bin, (low, high) in enumerate(pairwise(edges)):
            mass[:, bin] = sums[:, index(low) : index(high)].sum(1)
            if low > 0 and not self.causal:
                mass[:, bin] += sums[:, index(1 - high) : index(1 - low)].sum(1)
            if high > reach:
                break
        return mass

    def cells(self) -> tuple[Float[Tensor, "head query_block key_block"], Float[Tensor, "head query_block key_block"]]:
        """Return the sum and the largest p_ij of each cell of `place.grain` queries and keys."""
        return self.probability, self.probability

    def _diagonal_sums(self, low: int, high: int) -> tuple[int, Float[Tensor, "head offset"]]:
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

"""A block as statistics see it while a compiler watches: its positions are tensors, and only bounds are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probe.kernels.block import Block


class TracedBlock(Block):
    """One program serves every block of a kind, so that nothing here may depend on where a block lies.

    `query_start`, `key_start`, `normaliser`, `room` and `value` do not exist: a statistic that asks for one of them is
    computed without a compiler. Where `is_far`, all distances are at least the sum of the block's sides, on one side of
    the diagonal.
    """

    __setattr__ = object.__setattr__

    def __init__(
        self,
        *,
        log_probability: Tensor,
        log_sum_exp: Tensor,
        query_position: Tensor,
        key_position: Tensor,
        query_token: Tensor | None,
        key_token: Tensor | None,
        previous_token: Tensor | None,
        is_far: bool,
        least_key: int,
        grain: int,
    ) -> None:
        # A block's fields are frozen.
        vars(self).update(
            probability=log_probability.exp(),
            log_probability=log_probability,
            query_token=query_token,
            key_token=key_token,
            previous_token=previous_token,
        )
        self._log_sum_exp = log_sum_exp
        self._query_position = query_position
        self._key_position = key_position
        self.is_far = is_far
        self._least_key = least_key
        self._grain = grain
        self._least_distance = sum(self.probability.shape[1:]) if is_far else 0

    @property
    def query_position(self) -> Tensor:
        """Positions of the queries."""
        return self._query_position

    @property
    def key_position(self) -> Tensor:
        """Positions of the keys."""
        return self._key_position

    @property
    def max_logit(self) -> None:
        """Not known beforehand."""
        return None

    @property
    def log_sum_exp(self) -> Tensor:
        """log Z over all keys."""
        return self._log_sum_exp

    def sum_over_keys(self, weight: Tensor) -> Tensor:
        """Return Σ_j p_ij w_ij for weights that broadcast to [head, query, key]."""
        if weight.dtype == torch.bool:
            return torch.where(weight, self.probability, 0.0).sum(-1)
        return (self.probability * weight).sum(-1)

    def mass_of_keys(self, start: int, stop: int) -> Tensor:
        """Return Σ_j p_ij over the keys at positions in `[start, stop)`."""
        if stop <= self._least_key:
            return self._nothing(self.probability.shape[1])
        return self.sum_over_keys((self.key_position >= start) & (self.key_position < stop))

    def mass_at_distances(self, low: int, high: int) -> Tensor:
        """Return Σ_j p_ij over the keys with `low ≤ i − j < high`."""
        if low >= 0 and high <= self._least_distance:
            return self._nothing(self.probability.shape[1])
        return self.sum_over_keys((self.distance >= low) & (self.distance < high))

    def mass_of_offsets(self, offsets: Sequence[int]) -> Tensor:
        """Return Σ_i p_{i, i−δ} for each δ of `offsets`, which ascend."""
        if not offsets or offsets[-1] < self._least_distance:
            return self._nothing(len(offsets))
        distance, sums = self._diagonals()
        wanted = torch.tensor(offsets, device=sums.device)
        return sums @ (distance[:, None] == wanted).to(sums.dtype)

    def mass_of_bins(self, edges: Sequence[int]) -> Tensor:
        """Return Σ_i Σ_j p_ij over the pairs with `edges[b] ≤ |i − j| < edges[b + 1]`, for each b."""
        lower = torch.tensor(edges[1:], device=self.probability.device)
        bins = torch.arange(len(edges) - 1, device=self.probability.device)
        if not self.is_far:
            distance, sums = self._diagonals()
            bin_of = (distance.abs()[:, None] >= lower).sum(-1)
            return sums @ (bin_of[:, None] == bins).to(sums.dtype)
        # The farthest distance is less than twice the nearest: no more than one edge lies between.
        behind = self.query_position[0] - self.key_position[-1]
        nearest = torch.maximum(behind, self.key_position[0] - self.query_position[-1])
        first = (nearest >= lower).sum()
        far = self.distance.abs() >= lower.gather(0, first[None])
        masses = [self.sum_over_keys(near).sum(1) for near in (~far, far)]
        return sum((bins == first + i).to(mass.dtype) * mass[:, None] for i, mass in enumerate(masses))  # type: ignore

    def cells(self) -> tuple[Tensor, Tensor]:
        """Return the sum and the largest p_ij of each cell of `grain` queries and keys."""
        head, query, key = self.probability.shape
        rows = self.probability.view(head, query // self._grain, self._grain, key)
        shape = (head, query // self._grain, key // self._grain, self._grain)
        return rows.sum(2).view(shape).sum(-1), rows.amax(2).view(shape).amax(-1)

    def _nothing(self, size: int) -> Tensor:
        return self.probability.new_zeros(self.probability.shape[0], size)

    def _diagonals(self) -> tuple[Tensor, Tensor]:
        """Return every distance of the block, descending, and the sum of its diagonal, [head, distance]."""
        head, query, key = self.probability.shape
        width, num = query + key, query + key - 1
        # As in `Block._diagonal_sums`: `query` zeros before each row, and after the last one.
        memory = torch.nn.functional.pad(self.probability, (query, 0, 0, 1)).contiguous()
        view = memory.as_strided((head, query, num), ((query + 1) * width, width + 1, 1), 1)
        distance = self.query_position[-1] - self.key_position[0] - torch.arange(num, device=memory.device)
        return distance, view.sum(1)

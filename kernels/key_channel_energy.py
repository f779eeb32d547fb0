"""Which channels of the keys carry anything, and whether the queries ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.keys import Keys, as_float64
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.tally import Tally


@dataclass(frozen=True)
class key_channel_energy(Statistic):
    """Mean of k_d² over the prompt's keys for each channel d, after rotation, and beside it the mean of q_d² over the
    prompt's last `window` queries (all, where there are fewer) and the query heads that share the key-value head.

    The prompt ends with row 0's query; keys that are hidden from every query do not count. The product of the two is
    the score by which ThinK drops channels; its root is ThinK's ‖q_d‖·‖k_d‖ up to a factor that all channels share.
    """

    window: int = 32
    """How many queries."""

    kind = "key"
    compares_positions = True
    arrays: ClassVar = {
        "": ArrayFacts(("kv_head", "channel"), "", merge="mean", meaning="mean of k_d²"),
        "query": ArrayFacts(("kv_head", "channel"), "", merge="mean", meaning="mean of q_d²"),
        "num_keys": ArrayFacts(("kv_head",), "keys", merge="sum", meaning="number of those keys"),
        "num_queries": ArrayFacts(("kv_head",), "queries", merge="sum", meaning="number of those queries"),
    }
    source = "Xu et al. 2024 (2407.21018, ThinK), in the form of NVIDIA's kvpress, whose window is 32"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"key_channel_energy: window is at least 1, not {self.window}")

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        call = dense.call
        stop = call.query_start + 1 if call.phase == "decode" else torch.inf
        counted = dense.key_position < stop
        if call.key_visible is not None:
            counted &= call.key_visible
        query = call.query[:, dense.query_position < stop][:, -self.window :].double()
        of_kv_head = query.square().mean(1).unflatten(0, (call.num_kv_heads, -1)).mean(1)
        per_head = torch.ones(call.num_kv_heads, dtype=torch.int64)
        return {
            "": call.key[:, counted].double().square().mean(1),
            "query": of_kv_head,
            "num_keys": per_head * int(counted.sum()),
            "num_queries": per_head * query.shape[1],
        }

    def tally(self) -> Tally:
        """Return the sums over keys, and the last queries."""
        return _Energy(self)


class _Energy(Tally):
    """Σ k_d² in float64, and the queries that may still be among the last."""

    def __init__(self, statistic: key_channel_energy) -> None:
        super().__init__(statistic)
        self.window = statistic.window
        self._sum: Tensor | None = None
        self._num_keys = 0
        self._queries: Tensor | None = None
        self._query_stop: int | None = None
        self._over = False

    def take(self, call: Call, new: Keys) -> None:
        """Add what is of the prompt; raises `ValueError` where queries are left out."""
        if self._over:
            return
        if self._query_stop not in (None, call.query_start):
            raise ValueError(f"queries from {call.query_start} on do not follow those before {self._query_stop}")
        self._query_stop = call.query_start + call.num_queries
        self._over = call.phase == "decode"
        stop = min(new.stop, call.query_start + 1) if self._over else new.stop
        for block in new.between(new.start, max(new.start, stop)).blocks():
            self._add_keys(block)
        self._add_queries(call.query[:, :1] if self._over else call.query)

    def finish(self, key_start: int, key_stop: int) -> dict[str, Tensor]:
        """Return the means; nothing where no key of the prompt was left."""
        if self._sum is None or self._queries is None or not self._num_keys:
            return {}
        num_kv_heads = len(self._sum)
        query = as_float64(self._queries).square().mean(1).unflatten(0, (num_kv_heads, -1)).mean(1)
        per_head = torch.ones(num_kv_heads, dtype=torch.int64)
        return {
            "": (self._sum / self._num_keys).float().cpu(),
            "query": query.float().cpu(),
            "num_keys": per_head * self._num_keys,
            "num_queries": per_head * self._queries.shape[1],
        }

    def state(self) -> dict[str, Tensor]:
        """Return the sums, and the last queries."""
        if self._sum is None or self._queries is None:
            return {}
        return {"sum": self._sum, "num_keys": torch.tensor(self._num_keys), "queries": self._queries}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the sums of the keys that follow, and the queries that do."""
        self._sum = state["sum"] if self._sum is None else self._sum + state["sum"].to(self._sum)
        self._num_keys += int(state["num_keys"])
        self._add_queries(state["queries"] if self._queries is None else state["queries"].to(self._queries))

    def _add_keys(self, keys: Keys) -> None:
        energy = as_float64(keys.key).square()
        if keys.visible is not None:
            energy = energy[:, keys.visible.to(energy.device)]
        self._num_keys += energy.shape[1]
        self._sum = energy.sum(1) if self._sum is None else self._sum + energy.sum(1)

    def _add_queries(self, query: Float[Tensor, "head query channel"]) -> None:
        kept = query[:, :0] if self._queries is None else self._queries
        spare = max(0, kept.shape[1] + query.shape[1] - self.window)
        # Joining copies: what is kept holds no chunk alive.
        self._queries = torch.cat([kept[:, spare:], query[:, -self.window :]], 1)

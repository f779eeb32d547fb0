"""What each key receives from the prompt's last queries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.keys import Keys
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.tally import Tally
from probe.kernels.walk import Walk


@dataclass(frozen=True)
class window_mass(Statistic):
    """Σ_i p_ij over the prompt's last `window` queries i (all, where there are fewer), for each key j.

    The prompt ends with row 0's query. Where a sliding cache has dropped keys that an earlier query saw, that query
    does not count; how many do stands beside it. These are SnapKV's votes before they are pooled over neighbours: they
    see what the prompt ends with, so that a question there is known to them.
    """

    window: int = 32
    """How many queries."""

    kind = "key"
    compares_positions = True
    arrays: ClassVar = {
        "": ArrayFacts(("head", "key"), "probability", merge="sum"),
        "num_queries": ArrayFacts(("head",), "queries", merge="sum", meaning="number of those queries"),
    }
    source = "Li et al. 2024 (2404.14469, SnapKV): attention of the observation window, summed over its queries"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"window_mass: window is at least 1, not {self.window}")

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        stop = dense.call.query_start + 1 if dense.call.phase == "decode" else torch.inf
        rows = dense.probability[:, dense.query_position < stop][:, -self.window :]
        return {"": rows.sum(1), "num_queries": torch.full((len(rows),), rows.shape[1], dtype=torch.int64)}

    def tally(self) -> Tally:
        """Return the last queries, and what they give each key."""
        return _Window(self)


class _Window(Tally):
    """Keeps the queries that may still be among the last, until row 0 brings all the keys of the prompt."""

    def __init__(self, statistic: window_mass) -> None:
        super().__init__(statistic)
        self.window = statistic.window
        self._queries: Tensor | None = None
        self._query_stop: int | None = None
        self._over = False

    def take(self, call: Call, new: Keys) -> None:
        """Keep a call's last queries; with row 0, sum over them. Raises `ValueError` where queries are left out."""
        if self._over:
            return
        if self._query_stop not in (None, call.query_start):
            raise ValueError(f"queries from {call.query_start} on do not follow those before {self._query_stop}")
        self._query_stop = call.query_start + call.num_queries
        self._over = call.phase == "decode"
        self._keep(call.query[:, :1] if self._over else call.query)
        if self._over:
            self._sum(call)
            self._queries = None

    def _keep(self, query: Float[Tensor, "head query channel"]) -> None:
        kept = query[:, :0] if self._queries is None else self._queries
        spare = max(0, kept.shape[1] + query.shape[1] - self.window)
        # Joining copies: what is kept holds no chunk alive.
        self._queries = torch.cat([kept[:, spare:], query[:, -self.window :]], 1)

    def _sum(self, call: Call) -> None:
        assert self._queries is not None
        stop = call.query_start + 1
        first = stop - self._queries.shape[1]
        if call.key_start:
            # Its first key is the cache's first or a later one.
            reach = call.key_start if call.window is None else call.key_start + call.window - 1
            first = min(max(first, reach), stop - 1)
        query = self._queries[:, self._queries.shape[1] - (stop - first) :]
        asked = replace(call, query=query, query_start=first, log_sum_exp=None, logit_direction=None)
        for _, blocks in Walk().over(asked):
            for block in blocks:
                self.put({"": block.probability.sum(1)}, block.key_start)
        self.put({"num_queries": torch.full((call.num_heads,), stop - first, dtype=torch.int64)}, call.key_start)

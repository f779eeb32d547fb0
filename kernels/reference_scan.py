"""The scan by definition: dense, in float64, for prompts short enough that the matrix may exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.dense import MAX_KEYS, Dense
from probe.kernels.series import Series
from probe.kernels.statistic import Statistic
from probe.kernels.tally import Tally


class ReferenceScan:
    """Keeps the queries, and evaluates every statistic's `reference` once the last call has come."""

    name = "reference"

    def __init__(
        self, statistics: Sequence[Statistic], series: Mapping[str, Series], tallies: Mapping[str, Tally]
    ) -> None:
        self.statistics = statistics
        self.series = series
        self.tallies = tallies
        self._calls: list[Call] = []

    def take(self, call: Call, tokens: Tensor | None, tokens_start: int) -> None:
        """Keep the call; raises `UsageError` for more keys than the definition takes, or a cache that drops some."""
        if call.key_start + call.num_keys > MAX_KEYS:
            raise UsageError(
                f"engine 'reference' is dense and takes prompts of at most {MAX_KEYS:,} tokens, "
                f"not {call.key_start + call.num_keys:,}"
            )
        if self._calls and call.key_start != self._calls[-1].key_start:
            raise UsageError("engine 'reference' needs every key to the end, and a sliding cache dropped some")
        self._calls.append(call)

    def finish(self) -> None:
        """Evaluate the definitions."""
        if not self._calls:
            return
        first, last = self._calls[0], self._calls[-1]
        query = torch.cat([call.query for call in self._calls], 1)
        self._calls = []
        dense = Dense(dataclasses.replace(last, query=query, query_start=first.query_start, log_sum_exp=None))
        for statistic in self.statistics:
            arrays = statistic.reference(dense)
            if statistic.key in self.series:
                self.series[statistic.key].append(arrays, first.query_start)
            else:
                self.tallies[statistic.key].take_reference(arrays, dense)

"""Statistics of single tokens, from chunks of the residual stream or of the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probe.kernels.pool import Pool
from probe.kernels.result import Result
from probe.kernels.series import Series
from probe.kernels.statistic import Statistic, parse


class TokenScan:
    """Computes statistics of kind `residual` or `token` of one sample, chunk by chunk."""

    def __init__(
        self,
        statistics: Sequence[str | Mapping[str, Any] | Statistic],
        *,
        token_start: int = 0,
        pool_tokens: int | None = None,
    ) -> None:
        """Start at the position `token_start`: of the first hidden state, or of the first target of a loss (1)."""
        asked = {statistic.key: statistic for statistic in map(parse, statistics)}
        if wrong := [key for key, statistic in asked.items() if statistic.kind not in ("residual", "token")]:
            raise ValueError(f"not statistics of single tokens: {', '.join(wrong)}")
        self.statistics = tuple(asked.values())
        self._pool = None if pool_tokens is None else Pool(pool_tokens)
        self._series = {s.key: Series(s.arrays, "token", self._pool) for s in self.statistics}
        self._stop = token_start

    def update(self, *tensors: Tensor) -> None:
        """Take the next chunk: hidden states [token, channel], or logits [token, vocabulary] and targets [token]."""
        with torch.inference_mode(False), torch.no_grad():
            for statistic in self.statistics:
                self._series[statistic.key].append(statistic.of_tokens(*tensors), self._stop)
        self._stop += len(tensors[0])

    def drain(self) -> dict[str, Result]:
        """Return what is finished, and keep it no longer; each result continues the one drained before."""
        return self._results(last=False)

    def finish(self) -> dict[str, Result]:
        """Return every array by its name in a trace, less what was drained; nothing where no chunk has come."""
        return self._results(last=True)

    def _results(self, *, last: bool) -> dict[str, Result]:
        results: dict[str, Result] = {}
        for statistic in self.statistics:
            series = self._series[statistic.key]
            arrays, start = series.finish() if last else series.drain()
            for suffix, values in arrays.items():
                results[statistic.array_name(suffix)] = Result.of(statistic, suffix, values, start, pool=self._pool)
        return results

"""Statistics of single tokens of a prompt that is spread over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from probe.kernels.ranked_scan import Pieces, opened, under
from probe.kernels.result import Result
from probe.kernels.ring import Ring
from probe.kernels.statistic import Statistic
from probe.kernels.token_scan import TokenScan


class RankedTokenScan(TokenScan):
    """A `TokenScan` of which every rank takes the tokens of its own stretch, from `token_start` on; rank 0 finishes."""

    def __init__(
        self,
        statistics: Sequence[str | Mapping[str, Any] | Statistic],
        ring: Ring,
        *,
        token_start: int = 0,
        pool_tokens: int | None = None,
    ) -> None:
        super().__init__(statistics, token_start=token_start, pool_tokens=pool_tokens)
        self.ring = ring
        self.rests = False
        """Whether what comes is another rank's, and is passed over."""
        self._whole = self._series
        self._own = {key: Pieces(series.facts, series.axis, series.pool) for key, series in self._whole.items()}
        self._series = dict(self._own)

    def update(self, *tensors: Tensor) -> None:
        """Take the next chunk, where it is this rank's."""
        if not self.rests:
            super().update(*tensors)

    def drain(self) -> dict[str, Result]:
        """Return nothing: what the ranks have comes together when they finish."""
        return {}

    def finish(self) -> dict[str, Result]:
        """Return every array at rank 0, and nothing at the others; every rank has to."""
        own = {f"{key}/{name}": each for key, series in self._own.items() for name, each in series.taken().items()}
        for tensors in self.ring.gather(own):
            for key, whole in self._whole.items():
                if found := under(key, tensors):
                    whole.append(*opened(found))
        self._series = self._whole
        return super().finish() if self.ring.rank == 0 else {}

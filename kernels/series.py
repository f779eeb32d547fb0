"""Arrays that grow along an axis of positions, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from probe.kernels.pool import Pool
from probe.kernels.statistic import ArrayFacts

FLUSH_ELEMENTS = 1 << 20
"""Entries that may wait on the device before they are joined, pooled where asked for, and moved to the CPU."""


class Series:
    """Concatenates chunks of some of a statistic's arrays along one axis, pooling complete blocks as they come."""

    def __init__(self, facts: Mapping[str, ArrayFacts], axis: str, pool: Pool | None = None) -> None:
        self.facts = facts
        self.axis = axis
        self.pool = pool
        self.start: int | None = None
        self._first = self._handed = 0
        self._waiting: list[dict[str, Tensor]] = []
        self._done: list[dict[str, Tensor]] = []

    @property
    def stop(self) -> int | None:
        """Position after the last entry; None before the first."""
        return None if self.start is None else self._first + sum(self._length(chunk) for chunk in self._waiting)

    def append(self, arrays: dict[str, Tensor], start: int) -> None:
        """Add the arrays of the positions from `start` on; raises `ValueError` where positions are left out."""
        if self.start is None:
            self.start = self._first = self._handed = start
        elif start != self.stop:
            raise ValueError(f"the chunk from position {start} does not follow what ended at {self.stop}")
        self._waiting.append(arrays)
        if sum(values.numel() for chunk in self._waiting for values in chunk.values()) >= FLUSH_ELEMENTS:
            self._flush(last=False)

    def drain(self) -> tuple[dict[str, Tensor], int]:
        """Return what is complete by suffix, on the CPU, and the position of its first entry; it is kept no longer.

        Entries of a pooled block that has not ended stay. Empty where nothing is complete.
        """
        self._flush(last=False)
        done, start, self._done, self._handed = self._done, self._handed, [], self._first
        return (self._join(done) if done else {}), start

    def finish(self) -> tuple[dict[str, Tensor], int]:
        """Return the joined arrays by suffix, less what was drained, and the position of their first entry."""
        self._flush(last=True)
        return (self._join(self._done) if self._done else {}), self._handed

    def _flush(self, last: bool) -> None:
        if not self._waiting:
            return
        chunk = self._join(self._waiting)
        length, ready = self._length(chunk), self._length(chunk)
        if self.pool is not None and not last:
            ready = max(0, length - (self._first + length) % self.pool.tokens)
        self._waiting = []
        if ready:
            now = {suffix: values.narrow(self._dim(suffix), 0, ready) for suffix, values in chunk.items()}
            now = now if self.pool is None else self.pool(now, self.facts, self._first)
            self._done.append({suffix: values.cpu() for suffix, values in now.items()})
            self._first += ready
        if ready < length:
            rest = {s: v.narrow(self._dim(s), ready, length - ready).clone() for s, v in chunk.items()}
            self._waiting = [rest]

    def _join(self, chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {suffix: torch.cat([chunk[suffix] for chunk in chunks], self._dim(suffix)) for suffix in chunks[0]}

    def _length(self, chunk: dict[str, Tensor]) -> int:
        suffix = next(iter(chunk))
        return chunk[suffix].shape[self._dim(suffix)]

    def _dim(self, suffix: str) -> int:
        return self.facts[suffix].axes.index(self.axis) if suffix in self.facts else -1

"""The pass over a layer's new keys and values, for the statistics of its cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.keys import Keys
from probe.kernels.series import Series
from probe.kernels.statistic import Statistic
from probe.kernels.tally import Tally


class KeyScan:
    """Computes the statistics of kind `key`: each key is taken once, from the call in which it first appears."""

    def __init__(
        self, statistics: Sequence[Statistic], series: Mapping[str, Series], tallies: Mapping[str, Tally]
    ) -> None:
        self.statistics = statistics
        self.series = series
        self.tallies = tallies
        self._start = 0
        self._stop: int | None = None
        self._last: Tensor | None = None
        self._without: set[str] = set()
        self._newest: Keys | None = None
        self._below: Keys | None = None

    def take(self, call: Call, below: Keys | None, before: Tensor | None = None) -> None:
        """Take the next call; `below` are the newest keys of the layer before, where there is one, and `before` the key
        [kv_head, 1, channel] before the first of all, where it is known and not the call's.

        Those of them that stand after this call's are kept for the next: a chunk that has to go through again in halves
        may have come whole from the layer before. Raises `ValueError` where keys were dropped from the cache before
        they were seen, or where the layer before handed over some of the keys and not others.
        """
        if not self.statistics:
            return
        if self._stop is None:
            self._start, self._last = call.key_start, before
        new = self._new(call, below)
        for statistic in self.statistics:
            if statistic.key in self.tallies:
                self.tallies[statistic.key].take(call, new)
            else:
                for block in new.blocks():
                    self._append(statistic, block)
        if new.num_keys:
            self._stop, self._last = new.stop, new.key[:, -1:].clone()
        self._newest = new if any(statistic.compares_layers for statistic in self.statistics) else None

    def hand_over(self) -> Keys | None:
        """Return the keys that the last call brought, for the layer after, and let go of them; None where unused."""
        newest, self._newest = self._newest, None
        return None if newest is None else newest.copy()

    def _new(self, call: Call, below: Keys | None) -> Keys:
        start = call.key_start if self._stop is None else self._stop
        first = start - call.key_start
        if first < 0:
            raise ValueError(
                f"layer {call.layer}: keys {start} to {call.key_start} left the cache before they were seen"
            )
        new = Keys(
            layer=call.layer,
            start=start,
            key=call.key[:, first:],
            value=call.value[:, first:],
            visible=None if call.key_visible is None else call.key_visible[first:],
            before=call.key[:, first - 1 : first] if 0 < first <= call.num_keys else self._last,
        )
        if below is not None and below.layer == call.layer - 1:
            self._below = below
        if self._below is None or not new.num_keys:
            return new
        new = replace(new, below=self._below.between(new.start, new.stop))
        self._below = self._below.between(new.stop, self._below.stop) if new.stop < self._below.stop else None
        return new

    def _append(self, statistic: Statistic, block: Keys) -> None:
        arrays = statistic.of_keys(block)
        series = self.series[statistic.key]
        if not arrays:
            if series.start is not None:
                raise ValueError(f"{statistic.key}: the layer before layer {block.layer} no longer hands over its keys")
            self._without.add(statistic.key)
            return
        if statistic.key in self._without:
            raise ValueError(f"{statistic.key}: the layer before layer {block.layer} did not hand over its first keys")
        length = next(iter(arrays.values())).shape[-1]
        if not length:
            return
        start = block.stop - length
        tokens = 1 if series.pool is None else series.pool.tokens
        if series.start is None and start // tokens != self._start // tokens:
            # The keys before have no value: NaN, so that all arrays have the same keys, unless others pool with them.
            before = start - self._start
            arrays = {
                name: torch.nn.functional.pad(part, (before, 0), value=torch.nan) for name, part in arrays.items()
            }
            start = self._start
        series.append(arrays, start)

"""The scan in torch: a block of scores at a time, on a CPU or any other device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.series import Series
from probe.kernels.statistic import Statistic
from probe.kernels.tally import Tally
from probe.kernels.visibility import Visibility
from probe.kernels.walk import Walk


class BlockedScan:
    """Adds what each block of queries and keys contributes to the statistics that are asked for."""

    name = "blocked"

    def __init__(
        self,
        statistics: Sequence[Statistic],
        series: Mapping[str, Series],
        tallies: Mapping[str, Tally],
        *,
        query_block: int | None = None,
        key_block: int | None = None,
    ) -> None:
        self.statistics = statistics
        self.series = series
        self.tallies = tallies
        self.walk = Walk(query_block, key_block)

    def take(self, call: Call, tokens: Tensor | None, tokens_start: int) -> None:
        """Take the next call; `tokens` are the sample's from position `tokens_start` on, up to the last key."""
        visibility = Visibility.of(call)
        for statistic in self.statistics:
            if statistic.key in self.tallies and statistic.wants(call.query_start):
                self.tallies[statistic.key].begin(call, visibility)
        for normaliser, blocks in self.walk.over(call, tokens, tokens_start):
            wanted = [s for s in self.statistics if s.wants(normaliser.query_start)]
            if not wanted:
                return
            rows = {s.key: s.per_query(normaliser) for s in wanted if s.key in self.series}
            reading = [s for s in wanted if s.reads_blocks]
            for block in blocks if reading else ():
                for statistic in reading:
                    parts = statistic.blocked(block)
                    if statistic.key in self.series:
                        _merge(rows[statistic.key], parts, statistic)
                    else:
                        self.tallies[statistic.key].add(parts, block.place)
            for key, arrays in rows.items():
                self.series[key].append(arrays, normaliser.query_start)

    def finish(self) -> None:
        """Nothing is left to do after the last call."""


def _merge(held: dict[str, Tensor], parts: dict[str, Tensor], statistic: Statistic) -> None:
    """Combine what two blocks of keys say of the same queries."""
    if not parts:
        return
    main = next(iter(statistic.arrays))
    higher = parts[main] > held[main] if main in held else None
    for suffix, part in parts.items():
        merge = statistic.arrays[suffix].merge
        if suffix not in held:
            held[suffix] = part
        elif merge == "argmax":
            assert higher is not None
            held[suffix] = torch.where(higher, part, held[suffix])
        elif merge == "max":
            held[suffix] = torch.maximum(held[suffix], part)
        else:
            held[suffix] = held[suffix] + part

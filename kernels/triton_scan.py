"""The scan on a GPU: Triton kernels that stream a layer's scores once, or twice where the normaliser is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.blocked_scan import BlockedScan
from probe.kernels.call import Call
from probe.kernels.scores import check_order
from probe.kernels.series import Series
from probe.kernels.statistic import Statistic
from probe.kernels.tally import Tally
from probe.kernels.triton_launch import Launch, interpreted

MIN_QUERIES = 16
"""Calls of fewer queries (decoded tokens) fill no tile; torch reads their rows whole."""


class TritonScan:
    """Composes the epilogues of the statistics into one kernel, and runs it over each call.

    Sums that many programs add to (`received_mass`, `attention_map`) are atomic additions in float32, whose order and
    with it their rounding differs from run to run; how much has not been measured on a GPU yet. With `deterministic`
    they are 64-bit integers with 36 binary places, and two runs are equal bit for bit. A statistic without an epilogue
    goes through the blocked scan, and so do all for calls of fewer than sixteen queries, and for calls whose logits an
    intervention changes.
    """

    def __init__(
        self,
        statistics: Sequence[Statistic],
        series: Mapping[str, Series],
        tallies: Mapping[str, Tally],
        *,
        deterministic: bool = False,
        query_block: int | None = None,
        key_block: int | None = None,
    ) -> None:
        for size in (query_block, key_block):
            if size is not None and (size < 1 or size & (size - 1)):
                raise UsageError(f"the Triton scan's blocks are powers of two, not {size}")
        self.series = series
        self.tallies = tallies
        self.deterministic = deterministic
        self.blocks = query_block, key_block
        self._own = [s for s in statistics if s.on_triton() or not s.reads_blocks]
        self._others = [s for s in statistics if s not in self._own]
        self._blocked = BlockedScan(self._others, series, tallies)
        self._few = BlockedScan(statistics, series, tallies)
        self._changed = False

    @property
    def name(self) -> str:
        """What a trace says ran."""
        name = "triton, interpreted" if interpreted() else "triton"
        name += ", deterministic" if self.deterministic else ""
        name += f"; blocked for {', '.join(s.key for s in self._others)}" if self._others else ""
        return name + ("; blocked where an intervention changed the logits" if self._changed else "")

    def take(self, call: Call, tokens: Tensor | None, tokens_start: int) -> None:
        """Take the next call; `tokens` are the sample's from position `tokens_start` on, up to the last key."""
        check_order(call)
        self._changed |= bool(call.changes)
        if call.changes or (self.blocks == (None, None) and call.num_queries < MIN_QUERIES):
            self._few.take(call, tokens, tokens_start)
            return
        if self._others:
            self._blocked.take(call, tokens, tokens_start)
        wanted = [s for s in self._own if s.wants(call.query_start)]
        if not wanted:
            return
        device = call.query.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            launch = Launch(call, wanted, *self.blocks)
            normaliser = launch.normaliser()
            lse = normaliser.log_sum_exp
            finite = ((lse < torch.inf) & ((lse > -torch.inf) | (normaliser.num_visible == 0))).all(1)
            layout = launch.layout(finite, tokens, tokens_start, deterministic=self.deterministic)
            found: dict[str, dict[str, Tensor]] = {s.key: {} for s in wanted}
            for pass_ in launch.passes(layout):
                launch.scan(pass_, layout, normaliser)
                for part in pass_.parts:
                    held = found[part.statistic]
                    for suffix, values in part.epilogue.collect(layout, part.memory).items():
                        held[suffix] = held[suffix] + values if suffix in held else values
        for statistic in wanted:
            parts = found[statistic.key]
            if statistic.key in self.series:
                self.series[statistic.key].append(statistic.per_query(normaliser) | parts, call.query_start)
            else:
                self.tallies[statistic.key].take_parts(parts, call)

    def finish(self) -> None:
        """Nothing is left to do after the last call."""

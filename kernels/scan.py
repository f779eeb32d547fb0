"""One pass over a layer's attention for all statistics that are asked for, with memory that grows like its length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probe.kernels.blocked_scan import BlockedScan, Compiled
from probe.kernels.call import Call
from probe.kernels.engine import Engine, EngineName, choose
from probe.kernels.exact import exact
from probe.kernels.heap import trim
from probe.kernels.key_scan import KeyScan
from probe.kernels.keys import Keys
from probe.kernels.pool import Pool
from probe.kernels.reference_scan import ReferenceScan
from probe.kernels.result import Result
from probe.kernels.series import Series
from probe.kernels.statistic import Statistic, parse
from probe.kernels.tally import Tally
from probe.kernels.walk import Walk
from probe.sample import Span

AXES = {"scan": "query", "row": "row", "key": "key"}
"""Axis along which each kind's arrays grow."""
TRIM_FROM_SCORES = 1 << 24
"""Scores of a call from which giving memory back costs nothing beside them."""


class Scan:
    """Computes statistics of one layer and one sample, from consecutive calls: chunks of a prompt, decoded tokens.

    The answer depends neither on how the queries came in calls nor on the block sizes (to float32 rounding). What is
    not asked for is not computed: without a statistic of kind `scan`, no score of a prefill call is. Rows are the
    queries of the calls whose phase is `decode`. NaN and infinity in the input come out as NaN.
    """

    def __init__(
        self,
        statistics: Sequence[str | Mapping[str, Any] | Statistic],
        *,
        spans: Sequence[Span] = (),
        pool_tokens: int | None = None,
        query_block: int | None = None,
        key_block: int | None = None,
        engine: EngineName = "auto",
        deterministic: bool = False,
        compiled: Compiled = "auto",
    ) -> None:
        """Prepare; `engine` chooses the implementation (see `probe.kernels.engine`), `compiled` whether the blocked one
        compiles (see `probe.kernels.blocked_scan`).

        With `deterministic` the Triton engine sums in 64-bit integers what many programs add to, so that two runs are
        equal bit for bit; the other engines are so anyhow.
        """
        asked = {statistic.key: statistic for statistic in map(parse, statistics)}
        if wrong := [key for key, statistic in asked.items() if statistic.kind not in AXES]:
            raise ValueError(f"not statistics of an attention call: {', '.join(wrong)}")
        self.statistics = tuple(asked.values())
        self._scan = [s for s in self.statistics if s.kind == "scan"]
        self._rows = [s for s in self.statistics if s.kind == "row"]
        self._blocks = query_block, key_block
        self._asked_engine = engine
        self._deterministic = deterministic
        self._compiled: Compiled = compiled
        self._engine: Engine | None = None
        self._spans = tuple(spans)
        self._row_walk = Walk(query_block, whole_rows=True, spans=self._spans)
        self._pool = None if pool_tokens is None else Pool(pool_tokens)
        self._series: dict[str, Series] = {}
        self._tallies: dict[str, Tally] = {}
        for s in self.statistics:
            own_tally = type(s).tally is not Statistic.tally
            if AXES[s.kind] in next(iter(s.arrays.values())).axes and not own_tally:
                self._series[s.key] = Series(s.arrays, AXES[s.kind], None if s.kind == "row" else self._pool_of(s))
            else:
                self._tallies[s.key] = s.tally()
        keys = [s for s in self.statistics if s.kind == "key"]
        self._key_scan = KeyScan(keys, self._series, self._tallies)
        self._num_rows = 0
        self._query_stop: int | None = None
        self._keys_seen: tuple[int, int] | None = None
        self._tokens: Tensor | None = None
        self._tokens_start = 0

    def update(self, call: Call, below: Keys | None = None) -> None:
        """Take the next call; raises `ValueError` where its queries do not follow those of the call before.

        `below` are the keys that came at the same time in the attention layer before, as its scan's `hand_over` gives
        them; without them statistics that compare layers have no array. Those of another layer count as none.
        """
        with exact(call.query.device):
            self._note(call)
            self._key_scan.take(call, below)
            if self._scan:
                self._engine_for(call).take(call, self._tokens, self._tokens_start)
            if self._rows and call.phase == "decode":
                self._take_rows(call)
        if call.query.device.type == "cpu" and call.num_heads * call.num_queries * call.num_keys > TRIM_FROM_SCORES:
            trim()

    def hand_over(self) -> Keys | None:
        """Return, once, the keys that the last call brought, for the scan of the layer after; None where unused."""
        return self._key_scan.hand_over()

    @property
    def engine_name(self) -> str | None:
        """What computed the statistics of kind `scan`; None before the first call, and where none was asked for."""
        return None if self._engine is None else self._engine.name

    def drain(self) -> dict[str, Result]:
        """Return what is finished of the arrays that grow with the prompt, and keep it no longer.

        Each result's `grows_along` is the axis along which it continues the one drained before; `finish` gives the
        rest. Rows, sums and maxima come from `finish` alone.
        """
        growing = [s for s in self.statistics if s.key in self._series and s.kind != "row"]
        return self._results(growing, last=False)

    def finish(self) -> dict[str, Result]:
        """Return every array by its name in a trace, less what was drained.

        An array to which no call contributed is left out.
        """
        if self._engine is not None:
            self._engine.finish()
        return self._results(self.statistics, last=True)

    def _results(self, statistics: Sequence[Statistic], *, last: bool) -> dict[str, Result]:
        results: dict[str, Result] = {}
        for statistic in statistics:
            tally, pool = self._tallies.get(statistic.key), self._pool_of(statistic)
            if tally is None:
                series = self._series[statistic.key]
                arrays, start = series.finish() if last else series.drain()
            else:
                first, stop = self._keys_seen or (0, 0)
                arrays, start = tally.finish(first, stop), first
                by_key = {suffix for suffix, facts in statistic.arrays.items() if facts.axes[-1] == "key"}
                if pool is not None and by_key:
                    pooled = pool({s: v for s, v in arrays.items() if s in by_key}, statistic.arrays, start)
                    arrays = {s: v for s, v in arrays.items() if s not in by_key} | pooled
            for suffix, values in arrays.items():
                results[statistic.array_name(suffix)] = Result.of(
                    statistic, suffix, values, start, pool=pool, spans=self._spans, tally=tally
                )
        return results

    def _pool_of(self, statistic: Statistic) -> Pool | None:
        return self._pool if statistic.can_pool else None

    def _note(self, call: Call) -> None:
        if call.part == "cross" and (wrong := [s.key for s in self.statistics if s.compares_positions]):
            raise ValueError(f"no statistics of cross-attention, whose positions are of two texts: {', '.join(wrong)}")
        if self._scan:
            if self._query_stop not in (None, call.query_start):
                raise ValueError(f"queries from {call.query_start} on do not follow those before {self._query_stop}")
            self._query_stop = call.query_start + call.num_queries
        first, stop = self._keys_seen or (call.key_start, 0)
        self._keys_seen = min(first, call.key_start), max(stop, call.key_start + call.num_keys)
        if call.tokens is None or not any(s.needs_tokens for s in self._scan):
            self._tokens = None
        elif self._tokens is None or call.key_start > self._tokens_start + len(self._tokens):
            self._tokens, self._tokens_start = call.tokens, call.key_start
        else:
            # A sliding cache has dropped tokens that still stand before the keys that it holds.
            self._tokens = torch.cat([self._tokens[: call.key_start - self._tokens_start], call.tokens])

    def _engine_for(self, call: Call) -> Engine:
        if self._engine is None:
            self._engine = self._new_engine(call, self._scan, self._series)
        return self._engine

    def _new_engine(self, call: Call, statistics: Sequence[Statistic], series: Mapping[str, Series]) -> Engine:
        name, (query_block, key_block) = choose(self._asked_engine, call), self._blocks
        if name == "triton":
            # Triton is optional, and reads TRITON_INTERPRET when it is imported.
            from probe.kernels.triton_scan import TritonScan

            return TritonScan(
                statistics,
                series,
                self._tallies,
                deterministic=self._deterministic,
                query_block=query_block,
                key_block=key_block,
            )
        if name == "reference":
            return ReferenceScan(statistics, series, self._tallies)
        return BlockedScan(
            statistics,
            series,
            self._tallies,
            query_block=query_block,
            key_block=key_block,
            compiled=self._compiled,
        )

    def _take_rows(self, call: Call) -> None:
        for _, blocks in self._row_walk.over(call):
            for block in blocks:
                for statistic in self._rows:
                    arrays = statistic.of_rows(statistic.blocked(block))
                    self._series[statistic.key].append(arrays, self._num_rows)
                self._num_rows += block.probability.shape[1]

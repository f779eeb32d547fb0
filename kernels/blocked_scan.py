"""The scan in torch: a block of scores at a time, on a CPU or any other device, compiled where that pays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from probe.kernels.block_program import BlockPrograms, Shape
from probe.kernels.call import Call
from probe.kernels.compiled_walk import CompiledWalk, can_compile
from probe.kernels.program import has_compiler
from probe.kernels.series import Series
from probe.kernels.statistic import Statistic
from probe.kernels.tally import Tally
from probe.kernels.visibility import Visibility
from probe.kernels.walk import Walk

Compiled = Literal["auto", True, False]

AUTO_FROM_SCORES = 1 << 28
"""heads × queries × keys of a call from which `auto` compiles: 8 heads at 5,800 tokens. Once compiled such a call takes
seconds less; compiling takes 10 to 40 seconds the first time on a machine, then a few."""
LEAST_QUERIES = 16
"""Calls of fewer queries, such as decoded tokens, are never compiled."""


class BlockedScan:
    """Adds what each block of queries and keys contributes to the statistics that are asked for.

    `compiled` says whether blocks are computed by compiled programs: never (False), wherever possible (True), or on a
    CPU with a C++ compiler in calls of at least 2^28 scores (`auto`). What fails to compile is computed without, and
    the log says so; decoded tokens, other devices and statistics of other axes always are.
    """

    def __init__(
        self,
        statistics: Sequence[Statistic],
        series: Mapping[str, Series],
        tallies: Mapping[str, Tally],
        *,
        query_block: int | None = None,
        key_block: int | None = None,
        compiled: Compiled = "auto",
    ) -> None:
        self.statistics = statistics
        self.series = series
        self.tallies = tallies
        self.walk = Walk(query_block, key_block)
        self.compiled = compiled
        self.name = "blocked"
        """`blocked, compiled` once a call was computed so."""

    def take(self, call: Call, tokens: Tensor | None, tokens_start: int) -> None:
        """Take the next call; `tokens` are the sample's from position `tokens_start` on, up to the last key."""
        visibility = Visibility.of(call)
        for statistic in self.statistics:
            if statistic.key in self.tallies and statistic.wants(call.query_start):
                self.tallies[statistic.key].begin(call, visibility)
        compiled = self._prepare(call, visibility, tokens, tokens_start)
        if compiled is None:
            self._take_by_operators(call, tokens, tokens_start)
            return
        self.name = "blocked, compiled"
        first = compiled.call.query_start
        if first > call.query_start:
            self._take_by_operators(_queries(call, call.query_start, first), tokens, tokens_start)
        for normaliser, arrays, place in compiled.over():
            for statistic in compiled.statistics:
                parts = arrays[statistic.key]
                if statistic.key in self.series:
                    rows = statistic.per_query(normaliser) | parts
                    self.series[statistic.key].append(rows, place.query_start)
                else:
                    self.tallies[statistic.key].add(parts, place)

    def finish(self) -> None:
        """Nothing is left to do after the last call."""

    def _prepare(
        self, call: Call, visibility: Visibility, tokens: Tensor | None, tokens_start: int
    ) -> CompiledWalk | None:
        """Return the compiled walk over the queries that all of the statistics want that the last query wants."""
        if (
            self.compiled is False
            or call.changes
            or call.query.device.type != "cpu"
            or call.num_queries < LEAST_QUERIES
        ):
            return None
        if self.compiled == "auto" and call.num_heads * call.num_queries * call.num_keys < AUTO_FROM_SCORES:
            return None
        stop = call.query_start + call.num_queries
        to_the_end = [s for s in self.statistics if s.wants(stop - 1)]
        reading = [s for s in to_the_end if s.reads_blocks]
        if not reading or not all(can_compile(s) for s in to_the_end) or not has_compiler():
            return None
        grain = min(self.tallies[s.key].grain if s.key in self.tallies else 16 for s in to_the_end)
        needs_tokens = tokens is not None and any(s.needs_tokens for s in reading)
        shape = Shape.of(call, grain, needs_tokens, self.walk.query_block, self.walk.key_block)
        # What the first queries alone are asked for takes no program of its own.
        first = call.query_start
        while first < stop and any(s.wants(first) for s in self.statistics if s not in to_the_end):
            first = min((first // shape.query + 1) * shape.query, stop)
        if first == stop:
            return None
        rest = _queries(call, first, stop)
        if first > call.query_start:
            visibility = Visibility.of(rest)
        programs = BlockPrograms.of(shape, reading, normaliser=call.log_sum_exp is None)
        if programs is None:
            return None
        return CompiledWalk(rest, visibility, to_the_end, shape, programs, tokens, tokens_start)

    def _take_by_operators(self, call: Call, tokens: Tensor | None, tokens_start: int) -> None:
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
                        rows[statistic.key] = statistic.join(rows[statistic.key], parts)
                    else:
                        self.tallies[statistic.key].add(parts, block.place)
            for key, arrays in rows.items():
                self.series[key].append(arrays, normaliser.query_start)


def _queries(call: Call, start: int, stop: int) -> Call:
    rows = slice(start - call.query_start, stop - call.query_start)
    log_sum_exp = None if call.log_sum_exp is None else call.log_sum_exp[:, rows]
    document = None if call.query_document is None else call.query_document[rows]
    return dataclasses.replace(
        call, query=call.query[:, rows], query_start=start, log_sum_exp=log_sum_exp, query_document=document
    )

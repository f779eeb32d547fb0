"""Walks over a call's queries and keys in blocks of one shape, each computed by a compiled program on its own thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.kernels.block import Place
from probe.kernels.call import Call
from probe.kernels.normaliser import Normaliser, found, given
from probe.kernels.program import Program, program
from probe.kernels.scores import MASKED
from probe.kernels.statistic import Statistic
from probe.kernels.traced_block import TracedBlock
from probe.kernels.visibility import Visibility
from probe.kernels.walk import token_ids

BLOCK_SCORES = 1 << 18
"""Scores of a block: a megabyte, what a core's own cache holds."""
INNER_KEY = 64
"""Blocks with keys before this position are not inner ones: few statistics look at the first keys alone."""

Arrays = dict[str, dict[str, Tensor]]
"""Statistic's key → suffix → values."""


@dataclass(frozen=True)
class Shape:
    """What a program is compiled for."""

    kv_head: int
    """Key-value heads of a block."""
    group: int
    """Query heads of each."""
    query: int
    """Queries of a block; it begins at a multiple of them."""
    key: int
    """Keys of a block; it begins at a multiple of them."""
    channel: int
    """Width of queries and keys."""
    grain: int
    """Positions along the cells that blocks give."""
    softcap: float | None
    """As in the call."""
    alibi: bool
    """Whether the call has slopes."""
    hidden: bool
    """Whether the call hides keys."""
    tokens: bool
    """Whether token ids are handed in."""

    @classmethod
    def of(cls, call: Call, grain: int, tokens: bool, query_block: int | None, key_block: int | None) -> Shape:
        """Choose the shape for a call."""
        group = call.num_heads // call.num_kv_heads
        query, key = 128, 256
        while query > max(16, grain) and group * query * key > BLOCK_SCORES:
            query //= 2
        most = max(1, BLOCK_SCORES // (group * query * key))
        kv_head = max(n for n in range(1, call.num_kv_heads + 1) if call.num_kv_heads % n == 0 and n <= most)
        while key < 1024 and kv_head * group * query * key * 2 <= BLOCK_SCORES:
            key *= 2
        query = query if query_block is None else -(-query_block // grain) * grain
        key = key if key_block is None else -(-key_block // grain) * grain
        return cls(
            kv_head,
            group,
            query,
            key,
            call.query.shape[-1],
            grain,
            call.softcap,
            call.alibi_slope is not None,
            call.key_visible is not None,
            tokens,
        )


class CompiledWalk:
    """One call's compiled scan. `ready` says whether everything could be compiled; `over` then goes through it."""

    def __init__(
        self,
        call: Call,
        statistics: Sequence[Statistic],
        shape: Shape,
        visibility: Visibility,
        tokens: Tensor | None,
        tokens_start: int,
    ) -> None:
        self.call = call
        self.statistics = statistics
        self.shape = shape
        self.visibility = visibility
        self.tokens = None if tokens is None else tokens.to(torch.int32)
        self.tokens_start = tokens_start
        self.slope = None if call.alibi_slope is None else call.alibi_slope.float()
        self._programs: dict[tuple[str, bool], Program | None] = {}
        self._names: list[tuple[str, str]] = []

    def ready(self) -> bool:
        """Compile what is needed; False where that failed."""
        shape, head = self.shape, self.shape.kv_head * self.shape.group
        rows = torch.zeros(head, shape.query)
        random = torch.Generator().manual_seed(0)
        query = torch.randn(shape.kv_head, shape.group * shape.query, shape.channel, generator=random)
        key = torch.randn(shape.kv_head, shape.key, shape.channel, generator=random) * shape.channel**-0.5
        kinds = ["statistics"] if self.call.log_sum_exp is not None else ["statistics", "normaliser"]
        for inner in (True, False):
            query_start = 4 * (shape.query + shape.key) if inner else shape.key
            key_start = shape.query + shape.key if inner else 0
            common = [query, key, *self._positions(query_start, key_start, 0, inner)]
            for kind in kinds:
                rest = [rows + 2, rows, *self._token_ids(query_start, key_start)] if kind == "statistics" else []
                function = self._traced(kind, inner)
                # The names come from running the statistics, whether or not they are compiled anew.
                asked = tuple(self.statistics) if kind == "statistics" else ()
                made = program((kind, inner, shape, asked), function, [*common, *rest])
                if made is None:
                    return False
                self._programs[kind, inner] = made
                if kind == "statistics":
                    function(*common, *rest)
        return True

    def over(self) -> Iterator[tuple[Normaliser, Arrays, Place]]:
        """Yield for each block of queries, in their order, its normaliser, what all keys give to it, and its place."""
        call, size = self.call, self.shape.query
        stop = call.query_start + call.num_queries
        starts = range(call.query_start // size * size, stop, size)
        threads = max(1, min(torch.get_num_threads(), len(starts)))
        if threads == 1:
            for start in starts:
                yield self._of_queries(start)
            return
        with _workers(threads) as pool:
            # A few ahead, so that no thread waits, and no more, so that memory stays bounded.
            waiting: deque[Future[tuple[Normaliser, Arrays, Place]]] = deque()
            for start in starts:
                waiting.append(pool.submit(self._of_queries, start))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _of_queries(self, block_start: int) -> tuple[Normaliser, Arrays, Place]:
        with torch.no_grad():
            call, shape = self.call, self.shape
            start = max(block_start, call.query_start)
            stop = min(block_start + shape.query, call.query_start + call.num_queries)
            first, last = self.visibility.keys(start, stop)
            key_starts = range(first // shape.key * shape.key, max(last, first + 1), shape.key)
            num_visible = self.visibility.num_keys[start - call.query_start : stop - call.query_start]
            parts = [
                self._of_heads(head, block_start, start, stop, key_starts, num_visible)
                for head in range(0, call.num_kv_heads, shape.kv_head)
            ]
            normaliser = _joined([normaliser for normaliser, _ in parts])
            low, high = max(first, call.key_start), max(last, first + 1)
            place = Place(start, stop, low, high, shape.grain)
            arrays: Arrays = {}
            for statistic in self.statistics:
                held = [each[statistic.key] for _, each in parts]
                arrays[statistic.key] = {
                    suffix: _cut(
                        torch.cat([h[suffix] for h in held]),
                        statistic.arrays[suffix].axes,
                        place,
                        block_start,
                        key_starts[0],
                    )
                    for suffix in held[0]
                }
            return normaliser, arrays, place

    def _of_heads(
        self, head: int, block_start: int, start: int, stop: int, key_starts: range, num_visible: Tensor
    ) -> tuple[Normaliser, Arrays]:
        call, shape = self.call, self.shape
        heads = slice(head * shape.group, (head + shape.kv_head) * shape.group)
        query = call.query[heads, start - call.query_start : stop - call.query_start].float() * call.scale
        padding = (start - block_start, block_start + shape.query - stop)
        query = torch.nn.functional.pad(query, (0, 0, *padding)).view(shape.kv_head, -1, shape.channel)
        sliced = Call(
            **{
                **vars(call),
                "query": call.query[heads],
                "sink_logit": None if call.sink_logit is None else call.sink_logit[heads],
                "log_sum_exp": None if call.log_sum_exp is None else call.log_sum_exp[heads],
            }
        )

        def common(key_start: int, inner: bool) -> list[Tensor]:
            return [query, self._keys(head, key_start), *self._positions(block_start, key_start, head, inner)]

        inner = [self._is_inner(block_start, start, stop, key_start) for key_start in key_starts]
        if call.log_sum_exp is None:
            found_parts = [
                self._run("normaliser", is_inner, common(key_start, is_inner))
                for key_start, is_inner in zip(key_starts, inner, strict=True)
            ]
            maxima, totals = (torch.stack(each) for each in zip(*found_parts, strict=True))
            maximum = maxima.amax(0)
            excess = (totals * (maxima - maximum).exp()).sum(0).log()
            rows = slice(padding[0], shape.query - padding[1])
            normaliser = found(sliced, start, maximum[:, rows], excess[:, rows], num_visible)
        else:
            normaliser = given(sliced, start, stop, num_visible)
        shift, excess = (torch.nn.functional.pad(each, padding) for each in (normaliser.shift, normaliser.log_excess))
        blocks = []
        for key_start, is_inner in zip(key_starts, inner, strict=True):
            tokens = self._token_ids(block_start, key_start)
            blocks.append(self._run("statistics", is_inner, [*common(key_start, is_inner), shift, excess, *tokens]))
        return normaliser, self._merged(blocks)

    def _run(self, kind: str, inner: bool, inputs: list[Tensor]) -> list[Tensor]:
        made = self._programs[kind, inner]
        assert made is not None
        return made(*inputs)

    def _merged(self, blocks: list[list[Tensor]]) -> Arrays:
        """Combine what the blocks of keys say of the same queries."""
        arrays: Arrays = {s.key: {} for s in self.statistics}
        facts = {s.key: s.arrays for s in self.statistics}
        largest: dict[str, Tensor] = {}
        for index, (key, suffix) in enumerate(self._names):
            values, fact = [block[index] for block in blocks], facts[key][suffix]
            if fact.axes[-1] in ("key", "key_block"):
                arrays[key][suffix] = torch.cat(values, -1)
                continue
            stacked = torch.stack(values)
            if fact.merge == "argmax":
                arrays[key][suffix] = stacked.gather(0, largest[key][None])[0]
            elif fact.merge == "max":
                best = stacked.max(0)
                arrays[key][suffix], largest[key] = best.values, best.indices
            else:
                arrays[key][suffix] = stacked.sum(0)
        return arrays

    def _is_inner(self, block_start: int, start: int, stop: int, key_start: int) -> bool:
        shape, seen = self.shape, self.visibility
        key_stop, block_stop = key_start + shape.key, block_start + shape.query
        nearest = max(block_start - key_stop + 1, key_start - block_stop + 1)
        if shape.hidden or start > block_start or stop < block_stop or nearest < shape.query + shape.key:
            return False
        low, high = int(seen.first[stop - 1 - seen.query_start]), int(seen.stop[start - seen.query_start])
        return key_start >= max(INNER_KEY, low) and key_stop <= high

    def _keys(self, head: int, key_start: int) -> Tensor:
        call, shape = self.call, self.shape
        first, stop = key_start - call.key_start, key_start - call.key_start + shape.key
        key = call.key[head : head + shape.kv_head, max(first, 0) : stop].float()
        key = torch.nn.functional.pad(key, (0, 0, max(-first, 0), max(stop - call.num_keys, 0)))
        return key.contiguous()

    def _positions(self, query_start: int, key_start: int, head: int, inner: bool) -> list[Tensor]:
        """Return the positions, the slopes where there are some, and what masks the block unless it is an inner one."""
        shape, call = self.shape, self.call
        inputs = [
            torch.arange(query_start, query_start + shape.query, dtype=torch.int32),
            torch.arange(key_start, key_start + shape.key, dtype=torch.int32),
        ]
        if self.slope is not None:
            inputs.append(self.slope[head * shape.group : (head + shape.kv_head) * shape.group])
        if inner:
            return inputs
        rows = slice(max(query_start - call.query_start, 0), max(query_start - call.query_start + shape.query, 0))
        before = max(call.query_start - query_start, 0)
        for bound in (self.visibility.first, self.visibility.stop):
            bound = bound[rows].to(torch.int32)[: shape.query - min(before, shape.query)]
            before_rows = min(before, shape.query)
            # Padded queries see nothing: from 0 to 0.
            inputs.append(torch.nn.functional.pad(bound, (before_rows, shape.query - before_rows - len(bound))))
        if self.visibility.key_visible is not None:
            first, stop = key_start - call.key_start, key_start - call.key_start + shape.key
            visible = self.visibility.key_visible[max(first, 0) : max(stop, 0)]
            missing = shape.key - len(visible)
            before_keys = min(max(-first, 0), missing)
            inputs.append(torch.nn.functional.pad(visible, (before_keys, missing - before_keys)))
        return inputs

    def _token_ids(self, query_start: int, key_start: int) -> list[Tensor]:
        if not self.shape.tokens:
            return []
        spans = [(query_start, self.shape.query), (key_start, self.shape.key), (key_start - 1, self.shape.key)]
        if self.tokens is None:
            return [torch.zeros(size, dtype=torch.int32) for _, size in spans]
        inputs = []
        for start, size in spans:
            ids = token_ids(self.tokens, self.tokens_start, start, start + size)
            assert ids is not None
            inputs.append(torch.nn.functional.pad(ids, (0, size - len(ids)), value=-1))
        return inputs

    def _traced(self, kind: str, inner: bool) -> Program:
        shape, statistics, names = self.shape, self.statistics, self._names

        def function(*tensors: Tensor) -> list[Tensor]:
            inputs = iter(tensors)
            query, key, query_position, key_position = (next(inputs) for _ in range(4))
            slope = next(inputs) if shape.alibi else None
            first, stop = (None, None) if inner else (next(inputs), next(inputs))
            visible = next(inputs) if shape.hidden and not inner else None
            logits = torch.bmm(query, key.transpose(1, 2)).view(-1, shape.query, shape.key)
            if shape.softcap is not None:
                logits = torch.tanh(logits / shape.softcap) * shape.softcap
            if slope is not None:
                distance = (query_position[:, None] - key_position).abs().to(logits.dtype)
                logits = logits - slope[:, None, None] * distance
            seen = None
            if first is not None and stop is not None:
                seen = (key_position >= first[:, None]) & (key_position < stop[:, None])
                seen = seen if visible is None else seen & visible
                logits = torch.where(seen, logits, MASKED)
            if kind == "normaliser":
                maximum = logits.amax(-1)
                return [maximum, (logits - maximum[..., None]).exp().sum(-1)]
            shift, excess = next(inputs), next(inputs)
            log_probability = (logits - shift[..., None]) - excess[..., None]
            if seen is not None:
                log_probability = torch.where(seen, log_probability, MASKED)
            tokens = [next(inputs) for _ in range(3)] if shape.tokens else [None] * 3
            block = TracedBlock(
                log_probability=log_probability,
                log_sum_exp=shift + excess,
                query_position=query_position,
                key_position=key_position,
                query_token=tokens[0],
                key_token=tokens[1],
                previous_token=tokens[2],
                is_inner=inner,
                least_key=INNER_KEY if inner else 0,
                grain=shape.grain,
            )
            parts = {s.key: s.blocked(block) for s in statistics}
            names[:] = [(key, suffix) for key, arrays in parts.items() for suffix in arrays]
            return [parts[key][suffix] for key, suffix in names]

        return function


def can_compile(statistic: Statistic, axis: str) -> bool:
    """Whether the arrays of a statistic have axes that blocks of one shape can give and join."""
    return all(
        facts.axes[-1] in (axis, "key", "key_block") or axis not in facts.axes for facts in statistic.arrays.values()
    )


def _joined(normalisers: list[Normaliser]) -> Normaliser:
    first = normalisers[0]

    def cat(name: str) -> Tensor | None:
        return None if getattr(first, name) is None else torch.cat([getattr(n, name) for n in normalisers])

    fields = {name: cat(name) for name in ("max_logit", "shift", "log_excess", "log_sum_exp", "sink_logit")}
    return Normaliser(query_start=first.query_start, num_visible=first.num_visible, **fields)  # type: ignore[arg-type]


def _cut(values: Tensor, axes: tuple[str, ...], place: Place, query_start: int, key_start: int) -> Tensor:
    """Take off what was padded; blocks of positions stay where they hold one that was not."""
    bounds: Mapping[str, tuple[int, int, int, int]] = {
        "query": (place.query_start, place.query_stop, query_start, 1),
        "query_block": (place.query_start, place.query_stop, query_start, place.grain),
        "key": (place.key_start, place.key_stop, key_start, 1),
        "key_block": (place.key_start, place.key_stop, key_start, place.grain),
    }
    for dim, axis in enumerate(axes):
        if axis in bounds:
            first, stop, origin, grain = bounds[axis]
            begin = first // grain - origin // grain
            values = values.narrow(dim, begin, -(-stop // grain) - first // grain)
    return values


def _workers(threads: int) -> ThreadPoolExecutor:
    """Threads on each of which torch runs alone: blocks are too small to share without waiting for one another."""
    before, all_here = torch.get_num_threads(), threading.Barrier(threads + 1)

    def alone() -> None:
        torch.set_num_threads(1)
        all_here.wait()

    pool = ThreadPoolExecutor(threads)
    for _ in range(threads):
        pool.submit(alone)
    all_here.wait()
    # It is each thread's own, but for threads that begin later: these find what they would have found.
    torch.set_num_threads(before)
    return pool

"""Walks over a call's queries and keys in blocks of one shape, each computed by a compiled program on one thread."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from probe.kernels.block import Place
from probe.kernels.block_program import LEAST_KEY, BlockPrograms, Kind, Shape
from probe.kernels.call import Call
from probe.kernels.normaliser import Normaliser, found, given
from probe.kernels.statistic import Statistic
from probe.kernels.visibility import Visibility
from probe.kernels.walk import token_ids

Arrays = dict[str, dict[str, Tensor]]
"""Statistic's key → suffix → values."""


class CompiledWalk:
    """Goes through one call; every tensor along queries or keys is padded to whole blocks beforehand, but for these."""

    def __init__(
        self,
        call: Call,
        visibility: Visibility,
        statistics: Sequence[Statistic],
        shape: Shape,
        programs: BlockPrograms,
        tokens: Tensor | None,
        tokens_start: int,
    ) -> None:
        self.call = call
        self.visibility = visibility
        self.statistics = statistics
        self.shape = shape
        self.programs = programs
        self._facts = {s.key: s.arrays for s in statistics}
        query_stop, key_stop = call.query_start + call.num_queries, call.key_start + call.num_keys
        self._query_origin = call.query_start // shape.query * shape.query
        self._key_origin = call.key_start // shape.key * shape.key
        query_end = -(-query_stop // shape.query) * shape.query
        key_end = -(-key_stop // shape.key) * shape.key
        queries = call.query_start - self._query_origin, query_end - query_stop
        keys = call.key_start - self._key_origin, key_end - key_stop
        self._query_position = torch.arange(self._query_origin, query_end, dtype=torch.int32)
        self._key_position = torch.arange(self._key_origin, key_end, dtype=torch.int32)
        # A padded query sees the keys from 0 to 0.
        self._first = _padded(visibility.first.to(torch.int32), *queries)
        self._stop = _padded(visibility.stop.to(torch.int32), *queries)
        self._visible = None if visibility.key_visible is None else _padded(visibility.key_visible, *keys)
        self._tokens: list[Tensor] = []
        for start, stop in (
            (self._query_origin, query_end),
            (self._key_origin, key_end),
            (self._key_origin - 1, key_end),
        ):
            ids = token_ids(tokens, tokens_start, start, stop)
            if ids is not None and shape.tokens:
                self._tokens.append(_padded(ids.to(torch.int32), 0, stop - start - len(ids)))

    def over(self) -> Iterator[tuple[Normaliser, Arrays, Place]]:
        """Yield for each block of queries, in their order, its normaliser, what all keys give to it, and its place."""
        starts = range(self._query_origin, self.call.query_start + self.call.num_queries, self.shape.query)
        threads = min(torch.get_num_threads(), len(starts))
        if threads == 1:
            yield from map(self._of_queries, starts)
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
        # Which gradients are recorded is each thread's own affair.
        with torch.no_grad():
            call, shape = self.call, self.shape
            start = max(block_start, call.query_start)
            stop = min(block_start + shape.query, call.query_start + call.num_queries)
            first, last = self.visibility.keys(start, stop)
            last = max(last, first + 1)
            key_starts = range(min(first, last - 1) // shape.key * shape.key, last, shape.key)
            kinds = [self._kind(block_start, start, stop, key_start) for key_start in key_starts]
            blocks = list(zip(key_starts, kinds, strict=True))
            heads = range(0, call.num_kv_heads, shape.kv_head)
            found = [self._of_heads(head, block_start, start, stop, blocks) for head in heads]
            place = Place(start, stop, first, min(last, call.key_start + call.num_keys), shape.grain)
            origins = block_start, key_starts[0]
            arrays: Arrays = {s.key: {} for s in self.statistics}
            for index, (key, suffix) in enumerate(self.programs.names):
                values = [parts[index] for _, parts in found]
                joined = values[0] if len(values) == 1 else torch.cat(values)
                arrays[key][suffix] = _cut(joined, self._facts[key][suffix].axes, place, *origins)
            return _joined([normaliser for normaliser, _ in found]), arrays, place

    def _of_heads(
        self, head: int, block_start: int, start: int, stop: int, blocks: list[tuple[int, Kind]]
    ) -> tuple[Normaliser, list[Tensor]]:
        shape = self.shape
        call = _of_some_heads(self.call, head, shape)
        padding = start - block_start, block_start + shape.query - stop
        rows = slice(start - call.query_start, stop - call.query_start)
        query = _padded(call.query[:, rows].float() * call.scale, 0, 0, *padding)
        query = query.reshape(shape.kv_head, -1, shape.channel).contiguous()
        inputs = [self._scores_inputs(query, call, block_start, *block) for block in blocks]
        num_visible = self.visibility.num_keys[rows]
        if call.log_sum_exp is None:
            run = self.programs.normaliser
            parts = [run[kind](*tensors) for (_, kind), tensors in zip(blocks, inputs, strict=True)]
            maxima, totals = (
                torch.stack(each)[..., padding[0] : shape.query - padding[1]] for each in zip(*parts, strict=True)
            )
            maximum = maxima.amax(0)
            excess = (totals * (maxima - maximum).exp()).sum(0).log()
            normaliser = found(call, start, maximum, excess, num_visible)
        else:
            normaliser = given(call, start, stop, num_visible)
        shifts = [_padded(each, *padding).contiguous() for each in (normaliser.shift, normaliser.log_excess)]
        given_blocks = [
            self.programs.statistics[kind](*tensors, *shifts, *self._token_ids(block_start, key_start))
            for (key_start, kind), tensors in zip(blocks, inputs, strict=True)
        ]
        return normaliser, self._merged(given_blocks)

    def _merged(self, blocks: list[list[Tensor]]) -> list[Tensor]:
        """Combine what the blocks of keys say of the same queries."""
        merged: list[Tensor] = []
        largest: dict[str, Tensor] = {}
        for index, (key, suffix) in enumerate(self.programs.names):
            values, facts = [block[index] for block in blocks], self._facts[key][suffix]
            if facts.axes[-1] in ("key", "key_block"):
                merged.append(torch.cat(values, -1))
            elif facts.merge == "argmax":
                merged.append(torch.stack(values).gather(0, largest[key][None])[0])
            elif facts.merge == "max":
                best = torch.stack(values).max(0)
                merged.append(best.values)
                largest[key] = best.indices
            else:
                merged.append(torch.stack(values).sum(0))
        return merged

    def _kind(self, block_start: int, start: int, stop: int, key_start: int) -> Kind:
        shape, seen = self.shape, self.visibility
        key_stop, block_stop = key_start + shape.key, block_start + shape.query
        nearest = max(block_start - key_stop + 1, key_start - block_stop + 1)
        far = nearest >= shape.query + shape.key
        low, high = int(seen.first[stop - 1 - seen.query_start]), int(seen.stop[start - seen.query_start])
        whole = start == block_start and stop == block_stop and low <= key_start and key_stop <= high
        inner = far and whole and not shape.hidden and key_start >= LEAST_KEY
        return Kind(masked=not inner, far=far)

    def _scores_inputs(self, query: Tensor, call: Call, block_start: int, key_start: int, kind: Kind) -> list[Tensor]:
        shape = self.shape
        rows = slice(block_start - self._query_origin, block_start - self._query_origin + shape.query)
        columns = slice(key_start - self._key_origin, key_start - self._key_origin + shape.key)
        first, stop = key_start - call.key_start, key_start - call.key_start + shape.key
        key = call.key[:, max(first, 0) : stop].float()
        key = _padded(key, 0, 0, max(-first, 0), max(stop - call.num_keys, 0)).contiguous()
        inputs = [query, key, self._query_position[rows], self._key_position[columns]]
        if call.alibi_slope is not None:
            inputs.append(call.alibi_slope.float())
        if call.distance_bias is not None:
            inputs.append(call.distance_bias.float().contiguous())
        if kind.masked:
            inputs += [self._first[rows], self._stop[rows]]
            if self._visible is not None:
                inputs.append(self._visible[columns])
        return inputs

    def _token_ids(self, query_start: int, key_start: int) -> list[Tensor]:
        if not self._tokens:
            return []
        query, key = query_start - self._query_origin, key_start - self._key_origin
        slices = (query, self.shape.query), (key, self.shape.key), (key, self.shape.key)
        return [ids[start : start + size] for ids, (start, size) in zip(self._tokens, slices, strict=True)]


def can_compile(statistic: Statistic) -> bool:
    """Whether the arrays of a statistic have axes that blocks of one shape can give and join."""
    joined = ("query", "key", "key_block")
    return all(facts.axes[-1] in joined or "query" not in facts.axes for facts in statistic.arrays.values())


def _padded(values: Tensor, *padding: int) -> Tensor:
    return torch.nn.functional.pad(values, padding) if any(padding) else values


def _of_some_heads(call: Call, kv_head: int, shape: Shape) -> Call:
    heads = slice(kv_head * shape.group, (kv_head + shape.kv_head) * shape.group)

    def some(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[heads]

    return dataclasses.replace(
        call,
        query=call.query[heads],
        key=call.key[kv_head : kv_head + shape.kv_head],
        value=call.value[kv_head : kv_head + shape.kv_head],
        sink_logit=some(call.sink_logit),
        alibi_slope=some(call.alibi_slope),
        distance_bias=some(call.distance_bias),
        log_sum_exp=some(call.log_sum_exp),
    )


def _joined(parts: list[Normaliser]) -> Normaliser:
    if len(parts) == 1:
        return parts[0]
    shift, log_excess, log_sum_exp = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("shift", "log_excess", "log_sum_exp")
    )
    max_logit, sink_logit = (
        None if getattr(parts[0], name) is None else torch.cat([getattr(part, name) for part in parts])
        for name in ("max_logit", "sink_logit")
    )
    first = parts[0]
    return Normaliser(first.query_start, max_logit, shift, log_excess, log_sum_exp, sink_logit, first.num_visible)


def _cut(values: Tensor, axes: tuple[str, ...], place: Place, query_start: int, key_start: int) -> Tensor:
    """Take off what was padded; cells stay where they hold a position that was not."""
    extents = {
        "query": (place.query_start, place.query_stop, query_start, 1),
        "query_block": (place.query_start, place.query_stop, query_start, place.grain),
        "key": (place.key_start, place.key_stop, key_start, 1),
        "key_block": (place.key_start, place.key_stop, key_start, place.grain),
    }
    for dim, axis in enumerate(axes):
        if axis in extents:
            first, stop, origin, grain = extents[axis]
            values = values.narrow(dim, first // grain - origin // grain, -(-stop // grain) - first // grain)
    return values


@contextmanager
def _workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads on each of which torch runs alone: blocks are too small to share without waiting for one another.

    So does this thread meanwhile, lest the helpers of its small sums spin on the cores that the others need.
    """
    before, all_here = torch.get_num_threads(), threading.Barrier(threads + 1)

    def begin() -> None:
        # The first question in a thread settles its number, as what then holds for new threads.
        torch.get_num_threads()
        all_here.wait()

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="scan") as pool:
            for _ in range(threads):
                pool.submit(begin)
            all_here.wait()
            # Setting it changes the own thread's number and that of new ones: set elsewhere, it is the latter alone.
            restore = threading.Thread(target=torch.set_num_threads, args=(before,))
            restore.start()
            restore.join()
            yield pool
    finally:
        torch.set_num_threads(before)

"""Walks over a call's queries and keys block by block; no more than one block's scores ever exist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.kernels.block import Block
from probe.kernels.call import Call
from probe.kernels.normaliser import Normaliser, found, given
from probe.kernels.scores import MASKED, Scores
from probe.sample import Span

BLOCK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 25}
"""Scores that a block holds by default. On a CPU they should stay in its cache."""
WHOLE_ROW_FACTOR = 2
"""Rows are kept whole, so that scores are computed once rather than twice, in blocks up to this many times larger."""
MIN_QUERIES, MAX_QUERIES = 16, 512
"""Fewest and most queries of a block by default."""


@dataclass(frozen=True)
class Walk:
    """How to cut calls into blocks; `over(call)` goes through one."""

    query_block: int | None = None
    """Queries in a block; None chooses."""
    key_block: int | None = None
    """Keys in a block; None chooses, whole rows where they fit."""
    whole_rows: bool = False
    """Whether a row may never be split, whatever its length."""
    spans: Sequence[Span] = ()
    """Handed on to the blocks."""

    def over(
        self, call: Call, tokens: Tensor | None = None, tokens_start: int = 0
    ) -> Iterator[tuple[Normaliser, Iterator[Block]]]:
        """Yield, for each block of queries, its normaliser and its blocks of keys, computed as they are asked for.

        `tokens` are the sample's token ids from position `tokens_start` on, at least up to the last key. What a block
        holds is overwritten by the next one.
        """
        scores = Scores(call)
        scratch = _Scratch(call.query.device)
        start = call.query_start
        while start < scores.query_stop:
            stop = min(start + self._num_queries(scores, start), scores.query_stop)
            yield self._of_queries(scores, start, stop, scratch, tokens, tokens_start)
            start = stop

    def _num_queries(self, scores: Scores, start: int) -> int:
        if self.query_block is not None:
            return self.query_block
        first, _ = scores.visible_keys(start, start + 1)
        budget = _budget(scores.call) // scores.call.num_heads
        size = 1 if self.whole_rows else MIN_QUERIES
        while size < MAX_QUERIES:
            _, stop = scores.visible_keys(start, min(start + 2 * size, scores.query_stop))
            if 2 * size * (self.key_block or stop - first) > budget:
                break
            size *= 2
        return size

    def _num_keys(self, scores: Scores, num_queries: int, num_keys: int) -> int:
        if self.whole_rows:
            return num_keys
        if self.key_block is not None:
            return self.key_block
        budget = _budget(scores.call) // (scores.call.num_heads * num_queries)
        return num_keys if num_keys <= WHOLE_ROW_FACTOR * budget else max(budget, 256)

    def _of_queries(
        self, scores: Scores, start: int, stop: int, scratch: _Scratch, tokens: Tensor | None, tokens_start: int
    ) -> tuple[Normaliser, Iterator[Block]]:
        call = scores.call
        query = scores.query(start, stop)
        first, last = scores.visible_keys(start, stop)
        size = self._num_keys(scores, stop - start, last - first)
        cuts = [(cut, min(cut + size, last)) for cut in range(first, last, size)]
        num_visible = scores.num_visible(start, stop)
        scratch.reserve(call.num_heads, stop - start, min(size, last - first))

        def logits(cut: tuple[int, int]) -> Tensor:
            out = scratch.first((call.num_kv_heads, query.shape[1], cut[1] - cut[0]))
            return scores.logits(query, scores.key(*cut), start, cut[0], out)

        whole = len(cuts) == 1 and call.log_sum_exp is None
        maximum = excess = None
        for cut in cuts if call.log_sum_exp is None else ():
            score = logits(cut)
            largest = score.amax(-1)
            if whole:
                log_probability = scratch.second(score.shape)
                torch.log_softmax(score, -1, out=log_probability)
                maximum, excess = largest, -log_probability.amax(-1)
                break
            score.sub_(largest[..., None])
            total = torch.exp(score, out=score).sum(-1)
            if maximum is None or excess is None:
                maximum, excess = largest, total
            else:
                higher = torch.maximum(maximum, largest)
                excess = excess * (maximum - higher).exp() + total * (largest - higher).exp()
                maximum = higher
        if maximum is None or excess is None:
            normaliser = given(call, start, stop, num_visible)
            own_excess = normaliser.log_excess
        else:
            own_excess = excess if whole else excess.log()
            normaliser = found(call, start, maximum, own_excess, num_visible)

        def blocks() -> Iterator[Block]:
            for cut in cuts:
                if whole:
                    log_probability = scratch.second((call.num_heads, stop - start, cut[1] - cut[0]))
                    if call.sink_logit is not None:
                        log_probability.sub_((normaliser.log_excess - own_excess)[..., None])
                else:
                    score = logits(cut)
                    log_probability = torch.sub(score, normaliser.shift[..., None], out=scratch.second(score.shape))
                    log_probability.sub_(normaliser.log_excess[..., None])
                if bool((num_visible == 0).any()):
                    log_probability.masked_fill_((num_visible == 0)[:, None], MASKED)
                probability = torch.exp(log_probability, out=scratch.padded(log_probability.shape))
                keys = slice(cut[0] - call.key_start, cut[1] - call.key_start)
                yield Block(
                    query_start=start,
                    key_start=cut[0],
                    probability=probability,
                    log_probability=log_probability,
                    room=scratch.third(log_probability.shape),
                    normaliser=normaliser,
                    value=call.value[:, keys],
                    query_token=token_ids(tokens, tokens_start, start, stop),
                    key_token=token_ids(tokens, tokens_start, *cut),
                    previous_token=token_ids(tokens, tokens_start, cut[0] - 1, cut[1] - 1),
                    spans=self.spans,
                    causal=call.causal,
                    window=call.window,
                    logit_direction=_rows_of(call.logit_direction, start - call.query_start, stop - call.query_start),
                )

        return normaliser, blocks()


class _Scratch:
    """Memory that every block of a walk reuses: fresh pages for each would cost more than the arithmetic."""

    def __init__(self, device: torch.device) -> None:
        self._memory = [torch.empty(0, device=device) for _ in range(3)]

    def reserve(self, head: int, query: int, key: int) -> None:
        """Make room for the padded matrix, so that none of it is outgrown half-way."""
        self._take(0, (query + head * query * (key + query),))
        self._take(1, (head * query * key,))

    def first(self, shape: tuple[int, ...]) -> Tensor:
        return self._take(0, shape)

    def second(self, shape: tuple[int, ...]) -> Tensor:
        return self._take(1, shape)

    def third(self, shape: tuple[int, ...]) -> Tensor:
        return self._take(2, shape)

    def padded(self, shape: tuple[int, ...]) -> Tensor:
        """Return room in the first memory with `query` zeros before the matrix and after each of its rows."""
        head, query, key = shape
        memory = self._take(0, (query + head * query * (key + query),))
        rows = memory[query:].view(head, query, key + query)
        memory[:query] = 0
        rows[:, :, key:] = 0
        return rows[:, :, :key]

    def _take(self, which: int, shape: tuple[int, ...]) -> Tensor:
        size = torch.Size(shape).numel()
        if self._memory[which].numel() < size:
            self._memory[which] = self._memory[which].new_empty(size)
        return self._memory[which][:size].view(shape)


def _budget(call: Call) -> int:
    return BLOCK_ELEMENTS.get(call.query.device.type, BLOCK_ELEMENTS["cuda"])


def _rows_of(direction: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if direction is None else direction[:, start:stop]


def token_ids(tokens: Tensor | None, tokens_start: int, start: int, stop: int) -> Tensor | None:
    """Return the token ids of the positions `[start, stop)`; −1 for those before the first known."""
    if tokens is None:
        return None
    before = max(0, tokens_start - start)
    known = tokens[max(0, start - tokens_start) : stop - tokens_start]
    return torch.nn.functional.pad(known, (before, 0), value=-1)

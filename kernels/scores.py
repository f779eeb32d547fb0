"""Logits of a block of queries over a block of keys, scaled, capped and masked as the model does it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.kernels.call import Call

MASKED = -1e30
"""Stands for a logit that the mask hides. Finite, so that 0 · log 0 needs no care: exp(MASKED) is zero, and zero times
MASKED is zero; an infinity or a NaN that the model itself made stays visible."""


class Scores:
    """Logits of one call in float32, any block at a time. Positions everywhere are the sample's, as in the call."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.group = call.num_heads // call.num_kv_heads
        self.query_stop = call.query_start + call.num_queries
        self.key_stop = call.key_start + call.num_keys

    def visible_keys(self, query_start: int, query_stop: int) -> tuple[int, int]:
        """Return the range outside which none of these queries sees a key; one masked key where none sees any."""
        call = self.call
        first, stop = call.key_start, self.key_stop
        if call.causal:
            stop = min(stop, query_stop)
        if call.window is not None:
            first = max(first, query_start - call.window + 1)
            stop = min(stop, query_stop - 1 + call.window)
        if stop <= first:
            first = min(max(first, call.key_start), self.key_stop - 1)
            stop = first + 1
        return first, stop

    def num_visible(self, query_start: int, query_stop: int) -> Int[Tensor, "query"]:
        """Return how many keys each of these queries sees."""
        call = self.call
        position = torch.arange(query_start, query_stop)
        first = torch.full_like(position, call.key_start)
        stop = torch.full_like(position, self.key_stop)
        if call.causal:
            stop = torch.minimum(stop, position + 1)
        if call.window is not None:
            first = torch.maximum(first, position - call.window + 1)
            stop = torch.minimum(stop, position + call.window)
        return (stop - first).clamp_min(0).to(call.query.device)

    def query(self, query_start: int, query_stop: int) -> Float[Tensor, "kv_head group_query channel"]:
        """Return these queries, scaled, the heads of a group one after the other."""
        call = self.call
        query = call.query[:, query_start - call.query_start : query_stop - call.query_start].float() * call.scale
        return query.reshape(call.num_kv_heads, -1, query.shape[-1])

    def key(self, key_start: int, key_stop: int) -> Float[Tensor, "kv_head key channel"]:
        """Return these keys."""
        return self.call.key[:, key_start - self.call.key_start : key_stop - self.call.key_start].float()

    def logits(
        self,
        query: Float[Tensor, "kv_head group_query channel"],
        key: Float[Tensor, "kv_head key channel"],
        query_start: int,
        key_start: int,
        out: Float[Tensor, "kv_head group_query key"],
    ) -> Float[Tensor, "head query key"]:
        """Return the logits of these queries and keys, written into `out`; `MASKED` where the query sees no key."""
        call = self.call
        torch.bmm(query, key.transpose(1, 2), out=out)
        num_queries, num_keys = query.shape[1] // self.group, key.shape[1]
        logits = out.view(call.num_heads, num_queries, num_keys)
        if call.softcap is not None:
            logits.div_(call.softcap).tanh_().mul_(call.softcap)
        query_stop, key_stop = query_start + num_queries, key_start + num_keys
        # Keys from `late` on are hidden from the first query at least, keys before `early` from the last.
        late = query_start + (1 if call.causal else call.window or key_stop - query_start)
        early = query_stop - call.window if call.window is not None else key_start
        if late < key_stop:
            self._mask(logits, query_start, max(late, key_start), key_start, key_stop)
        if early > key_start:
            self._mask(logits, query_start, key_start, key_start, min(early, key_stop))
        return logits

    def _mask(
        self, logits: Float[Tensor, "head query key"], query_start: int, first: int, key_start: int, stop: int
    ) -> None:
        query = torch.arange(query_start, query_start + logits.shape[1], device=logits.device)[:, None]
        distance = query - torch.arange(first, stop, device=logits.device)
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if self.call.causal:
            hidden |= distance < 0
        if self.call.window is not None:
            hidden |= (distance >= self.call.window) | (distance <= -self.call.window)
        logits[:, :, first - key_start : stop - key_start].masked_fill_(hidden, MASKED)

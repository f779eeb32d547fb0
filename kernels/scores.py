"""Logits of a block of queries over a block of keys, scaled, capped and masked as the model does it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.score_change import MASKED, Place
from probe.kernels.visibility import Visibility

__all__ = ["MASKED", "Scores", "check_order"]


class Scores:
    """Logits of one call in float32, any block at a time. Positions everywhere are the sample's, as in the call."""

    def __init__(self, call: Call) -> None:
        check_order(call)
        self.call = call
        self.visibility = Visibility.of(call)
        self.group = call.num_heads // call.num_kv_heads
        self.query_stop = call.query_start + call.num_queries
        self.key_stop = call.key_start + call.num_keys

    def visible_keys(self, query_start: int, query_stop: int) -> tuple[int, int]:
        """Return the range outside which none of these queries sees a key; one masked key where none sees any."""
        first, stop = self.visibility.keys(query_start, query_stop)
        if stop <= first:
            first = min(first, self.key_stop - 1)
            stop = first + 1
        return first, stop

    def num_visible(self, query_start: int, query_stop: int) -> Int[Tensor, "query"]:
        """Return how many keys each of these queries sees."""
        rows = slice(query_start - self.call.query_start, query_stop - self.call.query_start)
        return self.visibility.num_keys[rows].to(self.call.query.device)

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
        if call.alibi_slope is not None:
            distance = self._distance(query_start, num_queries, key_start, num_keys).abs().to(logits.dtype)
            for head, slope in zip(logits, call.alibi_slope.tolist(), strict=True):
                head.sub_(distance, alpha=slope)
        if call.distance_bias is not None:
            distance = self._distance(query_start, num_queries, key_start, num_keys) - call.distance_bias_start
            distance.clamp_(0, call.distance_bias.shape[1] - 1)
            for head, bias in zip(logits, call.distance_bias, strict=True):
                head.add_(bias.float()[distance])
        for change in call.changes:
            logits = change(logits, Place(call, query_start, num_queries, key_start, num_keys))
        key_stop = key_start + num_keys
        rows = slice(query_start - call.query_start, query_start - call.query_start + num_queries)
        first, stop = self.visibility.first[rows], self.visibility.stop[rows]
        # Keys from `late` on are hidden from the first query at least, keys before `early` from the last.
        late, early = int(stop[0]), int(first[-1])
        if late < key_stop:
            self._mask(logits, first, stop, max(late, key_start), key_start, key_stop)
        if early > key_start:
            self._mask(logits, first, stop, key_start, key_start, min(early, key_stop))
        if self.visibility.key_visible is not None:
            hidden = ~self.visibility.key_visible[key_start - call.key_start : key_stop - call.key_start]
            logits.masked_fill_(hidden.to(logits.device), MASKED)
        return logits

    def _mask(
        self,
        logits: Float[Tensor, "head query key"],
        first: Int[Tensor, "query"],
        stop: Int[Tensor, "query"],
        from_key: int,
        key_start: int,
        to_key: int,
    ) -> None:
        key = torch.arange(from_key, to_key)
        hidden = (key < first[:, None]) | (key >= stop[:, None])
        logits[:, :, from_key - key_start : to_key - key_start].masked_fill_(hidden.to(logits.device), MASKED)

    def _distance(self, query_start: int, num_queries: int, key_start: int, num_keys: int) -> Int[Tensor, "query key"]:
        device = self.call.query.device
        query = torch.arange(query_start, query_start + num_queries, device=device)
        return query[:, None] - torch.arange(key_start, key_start + num_keys, device=device)


def check_order(call: Call) -> None:
    """Raise `ValueError` for a call with a softcap and a bias by distance, of which no model says which comes first."""
    if call.softcap is not None and (call.alibi_slope is not None or call.distance_bias is not None):
        raise ValueError("a softcap and ALiBi or a position bias together: no model says which comes first")

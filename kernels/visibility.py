"""Which keys each query sees, in the one form that every mask here has."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probe.kernels.call import Call


@dataclass(frozen=True, eq=False)
class Visibility:
    """Query i sees the keys at positions `first[i] ≤ j < stop[i]`, but for those that are hidden from all.

    Causal and windowed attention, packed documents and chunks against a cache all have this form, and neither bound
    ever falls from one query to the next: what a block of queries sees is read off its first and its last. On the CPU.
    """

    query_start: int
    """Position of the first query."""
    key_start: int
    """Position of the first key."""
    first: Int[Tensor, "query"]
    """Position of the first key that each query sees."""
    stop: Int[Tensor, "query"]
    """Position after the last one; equal to `first` where a query sees none."""
    key_visible: Bool[Tensor, "key"] | None
    """False for keys that are hidden from all."""
    num_keys: Int[Tensor, "query"]
    """How many keys each query sees."""
    _known: dict[tuple[int, int, int, int], Int[Tensor, "key"]] = field(default_factory=dict, repr=False)
    """What `num_queries` found over all keys."""
    _on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)
    """What `bounds` copied to each device."""

    @classmethod
    def of(cls, call: Call) -> Visibility:
        """Read a call's mask; raises `ValueError` for documents that do not lie in contiguous runs over the queries.

        The layers of a model that share a mask share what is made of it.
        """
        plain = _plain(call.query_start, call.num_queries, call.key_start, call.num_keys, call.causal, call.window)
        if call.document is None and call.key_visible is None:
            return plain
        first, stop = plain.first, plain.stop
        if call.document is not None:
            own_first, own_stop = _documents(call)
            first = torch.maximum(first, own_first)
            stop = torch.maximum(first, torch.minimum(stop, own_stop))
        visible = None if call.key_visible is None else call.key_visible.cpu()
        num_keys = stop - first
        if visible is not None:
            before = torch.nn.functional.pad(visible.cumsum(0), (1, 0))
            num_keys = before[stop - call.key_start] - before[first - call.key_start]
        return cls(call.query_start, call.key_start, first, stop, visible, num_keys)

    def bounds(self, device: torch.device) -> tuple[Int[Tensor, "query"], Int[Tensor, "query"], Int[Tensor, "query"]]:
        """Return `first`, `stop` and `num_keys` on a device, in int32."""
        if device not in self._on:
            first, stop, num_keys = (each.int().to(device) for each in (self.first, self.stop, self.num_keys))
            self._on[device] = first, stop, num_keys
        return self._on[device]

    def keys(self, query_start: int, query_stop: int) -> tuple[int, int]:
        """Return the range outside which none of these queries sees a key."""
        return int(self.first[query_start - self.query_start]), int(self.stop[query_stop - 1 - self.query_start])

    def num_queries(self, query_start: int, query_stop: int, key_start: int, key_stop: int) -> Int[Tensor, "key"]:
        """Return how many of these queries see each of these keys."""
        extent = query_start, query_stop, key_start, key_stop
        if extent in self._known:
            return self._known[extent]
        rows = slice(query_start - self.query_start, query_stop - self.query_start)
        key = torch.arange(key_start, key_stop)
        begun = torch.searchsorted(self.first[rows], key, right=True)
        num = begun - torch.searchsorted(self.stop[rows], key, right=True)
        if self.key_visible is not None:
            num *= self.key_visible[key_start - self.key_start : key_stop - self.key_start]
        if key_stop - key_start == int(self.stop[-1]) - self.key_start:
            # Asked again by the next layer; blocks are too many to remember.
            self._known[extent] = num
        return num


@lru_cache(maxsize=8)
def _plain(
    query_start: int, num_queries: int, key_start: int, num_keys: int, causal: bool, window: int | None
) -> Visibility:
    key_stop = key_start + num_keys
    position = torch.arange(query_start, query_start + num_queries)
    first = torch.full_like(position, key_start)
    stop = torch.full_like(position, key_stop)
    if causal:
        stop = torch.minimum(stop, position + 1)
    if window is not None:
        first = torch.maximum(first, position - window + 1)
        stop = torch.minimum(stop, position + window)
    # Where nothing is visible the empty range is clamped into the keys, so that both bounds stay monotone.
    first = first.clamp(key_start, key_stop)
    stop = torch.maximum(first, stop)
    return Visibility(query_start, key_start, first, stop, None, stop - first)


def _documents(call: Call) -> tuple[Tensor, Tensor]:
    assert call.document is not None
    document = call.document.cpu()
    ids, run, length = torch.unique_consecutive(document, return_inverse=True, return_counts=True)
    if len(torch.unique(ids)) != len(ids):
        raise ValueError("packed documents must lie one after the other, each in one piece")
    stop = length.cumsum(0)
    index = torch.arange(call.num_queries) + call.query_start - call.key_start
    if call.query_document is not None:
        same = call.query_document.cpu()[:, None] == ids
        own, found = same.int().argmax(1), same.any(1)
        # A document that has none of these keys lies before all of them, or after.
        none = torch.where(index < 0, 0, call.num_keys)
        first, last = torch.where(found, (stop - length)[own], none), torch.where(found, stop[own], none)
        return first + call.key_start, last + call.key_start
    if int(index[0]) < 0 or int(index[-1]) >= call.num_keys:
        raise ValueError("with packed documents the queries' own positions must be among the keys'")
    own = run[index]
    return (stop - length)[own] + call.key_start, stop[own] + call.key_start

"""What statistics of rotary positions are computed from: pairs of tokens drawn by position, and their logits by pair of
channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.keys import as_float64

BLOCK_QUERIES = 64
"""Queries whose pairs are computed at a time."""


@dataclass(frozen=True, eq=False)
class DrawnPairs:
    """One key for each query and distance bin, and what each pair of channels adds to the logit of the two."""

    distance: Int[Tensor, "query distance_bin"]
    """Query position minus key position."""
    there: Bool[Tensor, "query distance_bin"]
    """Whether the bin has a key that the query sees, and it was the one drawn."""
    part: Float[Tensor, "head query distance_bin rope_pair"]
    """c_d in float64: they sum to scale · q · k, the logit before softcap and biases. Last, where not every channel
    of a head turns, comes the part of those that do not."""

    @property
    def logit(self) -> Float[Tensor, "head query distance_bin"]:
        """Σ_d c_d."""
        return self.part.sum(-1)

    @property
    def share(self) -> Float[Tensor, "head query distance_bin rope_pair"]:
        """abs(c_d) / Σ abs(c_d); 0 where every part is."""
        size = self.part.abs()
        whole = size.sum(-1, keepdim=True)
        return torch.where(whole == 0, whole, size / whole)


def bin_edges(last: int) -> NDArray[np.int64]:
    """Return the lower edges 0, 1, 2, 4, … of the bins that the position `last` needs, and the upper edge of the last.

    A window changes nothing, so that a model's layers have the same bins.
    """
    edges = [0, 1]
    while edges[-1] <= last:
        edges.append(2 * edges[-1])
    return np.array(edges, np.int64)


def uniform(seed: int, position: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a number in [0, 1) that depends on nothing but these three (the finaliser of splitmix64, Steele et al.
    2014): the same however a prompt comes in chunks, on any device."""
    mixed = position.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = mixed + number.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03) + np.uint64(seed % (1 << 64))
    for _ in range(2):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def drawn_distances(
    position: NDArray[np.int64], seed: int, sinks: int, window: int | None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return a distance drawn evenly from each bin for queries at these positions, [query distance_bin], and whether
    there is one: of a key that is not among the first `sinks`, and within the window."""
    edges = bin_edges(int(position.max()))
    low, high = edges[:-1][None], edges[1:][None]
    high = np.minimum(high, position[:, None] - sinks + 1)
    if window is not None:
        high = np.minimum(high, window)
    drawn = uniform(seed, position[:, None], np.arange(len(edges) - 1)[None])
    return low + np.floor(drawn * np.maximum(high - low, 1)).astype(np.int64), high > low


def drawn_pairs(call: Call, seed: int, sinks: int) -> Iterator[DrawnPairs]:
    """Yield the pairs of a call's queries, a few queries at a time, each with the bins that its own positions need.

    Which keys are drawn depends on the queries' positions alone. A key that is hidden, gone from the cache or of
    another document is not drawn again: the pair is not there. Raises `ValueError` for a call without its pairs.
    """
    pairs = call.rotary_pairs
    if pairs is None:
        raise ValueError(f"layer {call.layer}: which channels turn together is not known")
    group = call.num_heads // call.num_kv_heads
    rest = torch.ones(call.query.shape[-1], dtype=torch.bool)
    rest[pairs.flatten().cpu()] = False
    for first in range(0, call.num_queries, BLOCK_QUERIES):
        query = as_float64(call.query[:, first : first + BLOCK_QUERIES])
        position = call.query_start + first + np.arange(query.shape[1], dtype=np.int64)
        drawn, allowed = drawn_distances(position, seed, sinks, call.window)
        index = position[:, None] - drawn - call.key_start
        allowed &= (index >= 0) & (index < call.num_keys)
        at = torch.from_numpy(np.where(allowed, index, 0)).to(call.key.device)
        there = torch.from_numpy(allowed).to(call.key.device)
        if call.document is not None:
            document = call.document.to(at.device)
            own = torch.from_numpy(position - call.key_start).to(at.device)
            there &= document[at] == document[own][:, None]
        if call.key_visible is not None:
            there &= call.key_visible.to(at.device)[at]
        key = as_float64(call.key[:, at.flatten()]).to(query.device).unflatten(1, at.shape)
        product = query.unflatten(0, (-1, group))[:, :, :, None] * key[:, None] * call.scale
        product = product.flatten(0, 1)
        parts = product[..., pairs.to(query.device)].sum(-1)
        if bool(rest.any()):
            parts = torch.cat([parts, product[..., rest.to(query.device)].sum(-1, keepdim=True)], -1)
        there = there.to(query.device)
        parts = torch.where(there[None, :, :, None], parts, 0.0)
        yield DrawnPairs(torch.from_numpy(drawn).to(query.device), there, parts)

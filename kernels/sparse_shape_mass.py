"""What three sparse shapes of attention would retain, each with as many keys of a query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.keys import Keys, as_float64
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.tally import Tally
from probe.kernels.walk import Walk

A_SHAPE: Final = (100, 800)
"""Published columns and diagonals of the A-shape."""
CANDIDATES: Final = ((30, 800), (100, 750), (500, 700), (3500, 100))
"""Published columns and diagonals of vertical and slash."""
FORCED: Final = 30
"""First columns and last diagonals that vertical and slash always has, at the published sizes."""
BLOCK: Final = 32
"""Queries, and keys, of a block."""

# Positions of queries and keys -> which keys a shape keeps of them, for every head or for each.
Shape = Callable[[Int[Tensor, "query"], Int[Tensor, "key"]], Bool[Tensor, "*head query key"]]


@dataclass(frozen=True)
class sparse_shape_mass(Statistic):
    """Σ_j p_ij over the keys that vertical and slash keeps for query i of a prompt of n tokens, mean over up to `rows`
    queries before the last `window`; and beside it the same of an A-shape and of block-sparse attention. Each keeps at
    most B = ⌊n / `one_in`⌋ keys of a query.

    A-shape: the first ⌊B · 100 / 900⌋ columns and the last diagonals. Vertical and slash: the columns and the diagonals
    that the last `window` queries give most, the first and the nearest among them whatever they get; of the four
    published ratios of columns to diagonals the one that keeps most of those queries' own attention. Block-sparse: of
    each block of 32 queries the ⌊B / 32⌋ blocks of 32 keys with the largest product of mean query and mean key.
    MInference compares shapes of fixed sizes and unequal cost, over all queries from position 2,500 on, those that
    chose included; the common budget and the queries apart from the ones that choose are this toolkit's own, and the
    queries begin no earlier than n / 2, with a whole block. `chance` is what uniform attention would give the same
    keys. Nothing where n is below 32 · `one_in` or leaves no such query, where a layer sees a window of tokens, where
    keys are hidden or documents packed.
    """

    one_in: int = 8
    """Of how many keys one is kept; the published block-sparse shape keeps one block in eight."""
    window: int = 64
    """The last queries, by which columns and diagonals are chosen; the published number."""
    rows: int = 448
    """Queries of which the mean is taken, at most."""

    kind = "key"
    compares_positions = True
    arrays: ClassVar = {
        "": ArrayFacts(("head",), "probability", merge="none"),
        "a_shape": ArrayFacts(("head",), "probability", merge="none", meaning="the same of the A-shape"),
        "block_sparse": ArrayFacts(("head",), "probability", merge="none", meaning="the same of block-sparse"),
        "chance": ArrayFacts(("head",), "probability", merge="none", meaning="what uniform attention would give"),
        "a_shape_chance": ArrayFacts(("head",), "probability", merge="none", meaning="the same of the A-shape"),
        "block_sparse_chance": ArrayFacts(("head",), "probability", merge="none", meaning="the same of block-sparse"),
        "num_queries": ArrayFacts(("head",), "queries", merge="none", meaning="number of those queries"),
    }
    source = (
        "Jiang et al. 2024 (2407.02490, MInference), shapes of the authors' code; at one budget: this toolkit's own"
    )

    def __post_init__(self) -> None:
        for name, least in (("one_in", 2), ("window", 1), ("rows", BLOCK)):
            if getattr(self, name) < least:
                raise UsageError(f"sparse_shape_mass: {name} is at least {least}, not {getattr(self, name)}")

    def measured(self, num_tokens: int) -> tuple[int, int]:
        """Return the first query that counts in a prompt of so many tokens, and the one after the last."""
        stop = (num_tokens - self.window) // BLOCK * BLOCK
        first = max(-(-num_tokens // 2), stop - self.rows)
        first = -(-first // BLOCK) * BLOCK
        return (first, stop) if num_tokens >= BLOCK * self.one_in and first < stop else (0, 0)

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        call = dense.call
        num = call.query_start + (1 if call.phase == "decode" else call.num_queries)
        first, stop = self.measured(num)
        if stop <= first or call.query_start or call.num_queries < num or not _sees_all(call, num):
            return {}
        p, distance = dense.probability[:, :num, :num], dense.distance[:num, :num]
        last = p[:, num - self.window :]
        far = distance[num - self.window :]
        slash = torch.stack([(last * (far == each)).sum((1, 2)) for each in range(num)], -1)
        tried = _candidates(last.sum(1), slash, num // self.one_in)
        masses = [
            (last * (columns[:, None] | diagonals[:, far.clamp(min=0)])).sum((1, 2)) for columns, diagonals in tried
        ]
        query, key = call.query[:, first:stop].double(), call.key[:, :stop].double()
        shapes = _shapes(_best(tried, masses), _blocks(query, key, num // self.one_in), first, num // self.one_in)
        made, seen = {}, dense.visible[first:stop, :num].double()
        for name, shape in shapes.items():
            mask = shape(dense.query_position[first:stop], dense.key_position[:num])
            made[name] = (p[:, first:stop] * mask).sum(-1).mean(-1)
            even = (seen * mask).sum(-1) / seen.sum(-1)
            made[f"{name}_chance".strip("_")] = even.mean(-1).expand(len(p))
        made["num_queries"] = torch.full((len(p),), stop - first, dtype=torch.int64)
        return made

    def tally(self) -> Tally:
        """Return the last queries of the prompt, and what is retained of theirs."""
        return _Retained(self)


class _Retained(Tally):
    """Keeps the queries that may count until row 0 brings all the keys of the prompt, and measures them then."""

    def __init__(self, statistic: sparse_shape_mass) -> None:
        super().__init__(statistic)
        self.statistic = statistic
        self._queries: Tensor | None = None
        self._query_stop: int | None = None
        self._found: dict[str, Tensor] = {}
        self._over = False

    def take(self, call: Call, new: Keys) -> None:
        """Keep a call's last queries; with row 0, measure. Raises `ValueError` where queries are left out."""
        if self._over:
            return
        if self._query_stop not in (None, call.query_start):
            raise ValueError(f"queries from {call.query_start} on do not follow those before {self._query_stop}")
        self._query_stop = call.query_start + call.num_queries
        self._over = call.phase == "decode"
        most = self.statistic.rows + self.statistic.window + BLOCK
        query = call.query[:, :1] if self._over else call.query[:, -most:]
        kept = query[:, :0] if self._queries is None else self._queries
        # Joining copies: what is kept holds no chunk alive.
        self._queries = torch.cat([kept[:, max(0, kept.shape[1] + query.shape[1] - most) :], query], 1)
        if self._over:
            self._measure(call, self._queries)
            self._queries = None

    def finish(self, key_start: int, key_stop: int) -> dict[str, Tensor]:
        """Return the means; nothing where there is nothing to take them over."""
        return self._found

    def _measure(self, call: Call, queries: Float[Tensor, "head query channel"]) -> None:
        num = call.query_start + 1
        first, stop = self.statistic.measured(num)
        start = num - queries.shape[1]
        if stop <= first or start > first or not _sees_all(call, num):
            return
        budget, window = num // self.statistic.one_in, self.statistic.window
        last = _asked(call, queries[:, -window:], num - window)
        tried = _candidates(*_votes(last, num), budget)
        masses, _ = _masses(last, [_vertical_slash(*each) for each in tried])
        asked = _asked(call, queries[:, first - start : stop - start], first)
        blocks = _blocks(as_float64(asked.query), as_float64(call.key[:, :stop]), budget).to(call.query.device)
        shapes = _shapes(_best(tried, masses), blocks, first, budget)
        masses, even = _masses(asked, list(shapes.values()))
        for name, mass, uniform in zip(shapes, masses, even, strict=True):
            self._found[name] = (mass / (stop - first)).float().cpu()
            self._found[f"{name}_chance".strip("_")] = (uniform / (stop - first)).float().cpu()
        self._found["num_queries"] = torch.full((call.num_heads,), stop - first, dtype=torch.int64)


def _sees_all(call: Call, num_tokens: int) -> bool:
    """Whether the prompt's queries see all keys before them."""
    windowed = call.window is not None and call.window < num_tokens
    apart = call.key_visible is not None or call.document is not None
    return call.causal and call.key_start == 0 and not windowed and not apart


def _asked(call: Call, query: Float[Tensor, "head query channel"], start: int) -> Call:
    return replace(call, query=query, query_start=start, log_sum_exp=None, logit_direction=None)


def _votes(call: Call, num_tokens: int) -> tuple[Float[Tensor, "head key"], Float[Tensor, "head offset"]]:
    """Return what a call's queries give to each key, and to each distance."""
    columns = torch.zeros(call.num_heads, num_tokens, device=call.query.device)
    slash = torch.zeros_like(columns)
    for _, blocks in Walk().over(call):
        for block in blocks:
            p = block.probability
            columns[:, block.key_start : block.key_stop] += p.sum(1)
            slash.index_add_(1, block.distance.clamp(min=0).reshape(-1), p.reshape(len(p), -1))
    return columns, slash


def _candidates(
    columns: Float[Tensor, "head key"], slash: Float[Tensor, "head offset"], budget: int
) -> list[tuple[Bool[Tensor, "head key"], Bool[Tensor, "head offset"]]]:
    """Return the columns and diagonals of each published ratio."""
    found = []
    for vertical, diagonal in CANDIDATES:
        forced, count = FORCED * budget // (vertical + diagonal), vertical * budget // (vertical + diagonal)
        found.append((_top(columns, count, forced), _top(slash, budget - count, forced)))
    return found


def _top(votes: Float[Tensor, "head key"], count: int, forced: int) -> Bool[Tensor, "head key"]:
    votes = votes.clone()
    votes[:, :forced] = torch.inf
    best = votes.argsort(dim=-1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(votes, dtype=torch.bool).scatter_(1, best, True)


def _best(
    tried: Sequence[tuple[Tensor, Tensor]], masses: Sequence[Float[Tensor, "head"]]
) -> tuple[Bool[Tensor, "head key"], Bool[Tensor, "head offset"]]:
    """Return, for each head, the candidate of the largest mass."""
    best = torch.stack(list(masses)).argmax(0)
    heads = torch.arange(len(best), device=best.device)
    columns, slash = (torch.stack([each[i] for each in tried])[best, heads] for i in (0, 1))
    return columns, slash


def _blocks(
    query: Float[Tensor, "head query channel"], key: Float[Tensor, "kv_head key channel"], budget: int
) -> Bool[Tensor, "head query_block key_block"]:
    """Return which blocks of keys each block of queries keeps, of whole blocks of which the last are the queries'."""
    mean_query = query.unflatten(1, (-1, BLOCK)).mean(2)
    mean_key = key.unflatten(1, (-1, BLOCK)).mean(2).repeat_interleave(len(query) // len(key), 0)
    logit = mean_query @ mean_key.transpose(1, 2)
    num_queries, num_keys = logit.shape[1:]
    later = torch.ones(num_queries, num_keys, dtype=torch.bool, device=logit.device).triu(num_keys - num_queries + 1)
    order = logit.masked_fill(later, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    kept = torch.zeros_like(logit, dtype=torch.bool).scatter_(2, order[..., : budget // BLOCK], True)
    return kept & ~later


def _vertical_slash(columns: Bool[Tensor, "head key"], slash: Bool[Tensor, "head offset"]) -> Shape:
    return lambda query, key: columns[:, None, key] | slash[:, (query[:, None] - key).clamp(min=0)]


def _shapes(
    chosen: tuple[Tensor, Tensor], blocks: Bool[Tensor, "head query_block key_block"], first: int, budget: int
) -> dict[str, Shape]:
    """Return the shapes for queries from position `first` on, by the suffix of their arrays."""
    columns = budget * A_SHAPE[0] // sum(A_SHAPE)

    def a_shape(query: Tensor, key: Tensor) -> Tensor:
        return (key < columns) | (query[:, None] - key < budget - columns)

    def block_sparse(query: Tensor, key: Tensor) -> Tensor:
        # Keys beyond the queries' blocks are later than all of them.
        inside = (key // BLOCK).clamp(max=blocks.shape[2] - 1)
        return blocks[:, (query - first) // BLOCK][:, :, inside]

    return {"": _vertical_slash(*chosen), "a_shape": a_shape, "block_sparse": block_sparse}


def _masses(call: Call, shapes: Sequence[Shape]) -> tuple[list[Float[Tensor, "head"]], list[Float[Tensor, "head"]]]:
    """Return what each shape retains of a call's attention, summed over the queries, and of uniform attention."""
    exact = torch.float32 if call.query.device.type == "mps" else torch.float64
    masses = [torch.zeros(call.num_heads, dtype=exact, device=call.query.device) for _ in shapes]
    even = [torch.zeros_like(each) for each in masses]
    for _, blocks in Walk().over(call):
        for block in blocks:
            query, key = block.query_position, block.key_position
            share = (key <= query[:, None]).to(exact) / (query[:, None] + 1)
            for shape, mass, uniform in zip(shapes, masses, even, strict=True):
                kept = shape(query, key)
                mass += (block.probability * kept).sum((1, 2), dtype=exact)
                uniform += (share * kept).sum((-2, -1))
    return masses, even

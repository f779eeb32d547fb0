"""What is compiled of a scan: the logits of one block of a fixed shape, masked, and every statistic's share of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.program import Program, program
from probe.kernels.scores import MASKED
from probe.kernels.statistic import Statistic
from probe.kernels.traced_block import TracedBlock

BLOCK_SCORES = 1 << 18
"""Scores of a block: a megabyte, what a core's own cache holds."""
LEAST_KEY = 64
"""Blocks with keys before this position are masked ones: few statistics look at the first keys alone."""


@dataclass(frozen=True)
class Shape:
    """What programs are compiled for."""

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
    num_distances: int
    """Entries of the call's bias by distance; 0 where it has none."""
    first_distance: int
    """Distance of the first of them."""
    hidden: bool
    """Whether the call hides keys."""
    tokens: bool
    """Whether token ids are handed in."""

    @classmethod
    def of(cls, call: Call, grain: int, tokens: bool, query_block: int | None, key_block: int | None) -> Shape:
        """Choose the shape for a call; block sizes that are given are rounded up to whole cells."""
        group = call.num_heads // call.num_kv_heads
        query, key = 128, 256
        while query > 16 and group * query * key > BLOCK_SCORES:
            query //= 2
        most = max(1, BLOCK_SCORES // (group * query * key))
        kv_head = max(n for n in range(1, call.num_kv_heads + 1) if call.num_kv_heads % n == 0 and n <= most)
        while key < 1024 and kv_head * group * query * key * 2 <= BLOCK_SCORES:
            key *= 2
        return cls(
            kv_head=kv_head,
            group=group,
            query=query if query_block is None else -(-query_block // grain) * grain,
            key=key if key_block is None else -(-key_block // grain) * grain,
            channel=call.query.shape[-1],
            grain=grain,
            softcap=call.softcap,
            alibi=call.alibi_slope is not None,
            num_distances=0 if call.distance_bias is None else call.distance_bias.shape[1],
            first_distance=0 if call.distance_bias is None else call.distance_bias_start,
            hidden=call.key_visible is not None,
            tokens=tokens,
        )


@dataclass(frozen=True)
class Kind:
    """Which of the blocks of a shape a program is for."""

    masked: bool
    """Whether some query may not see some key; the two bounds of each query, and the keys that are not hidden where
    some are, are handed in. If not, all keys stand at `LEAST_KEY` or after it."""
    far: bool
    """Whether all distances are at least the sum of the block's sides, on one side of the diagonal."""


KINDS = (Kind(masked=False, far=True), Kind(masked=True, far=True), Kind(masked=True, far=False))
"""What any block can be counted as."""


@dataclass(frozen=True, eq=False)
class BlockPrograms:
    """The compiled programs of a shape and some statistics."""

    statistics: dict[Kind, Program]
    """Give the arrays of `names`, from all of `inputs`."""
    normaliser: dict[Kind, Program]
    """Give each query's largest logit and Σ exp(s − that), from the inputs up to the masks. Empty where not needed."""
    names: Sequence[tuple[str, str]]
    """Statistic's key and suffix of each array."""

    @classmethod
    def of(cls, shape: Shape, statistics: Sequence[Statistic], *, normaliser: bool) -> BlockPrograms | None:
        """Compile, or take what was compiled before; None where that fails."""
        ours: dict[Kind, Program] = {}
        theirs: dict[Kind, Program] = {}
        names: list[tuple[str, str]] = []
        for kind in KINDS:
            example = _example(shape, kind)
            for statistics_of_it in (tuple(statistics), ())[: 1 + normaliser]:
                traced = _Traced(shape, kind, statistics_of_it)
                inputs = example if statistics_of_it else example[: _num_scores_inputs(shape, kind)]
                made = program((shape, kind, statistics_of_it), traced, inputs)
                if made is None:
                    return None
                (ours if statistics_of_it else theirs)[kind] = made
            if not names:
                # Which arrays there are is known from running the statistics, compiled before or not.
                traced = _Traced(shape, kind, tuple(statistics))
                traced(*example)
                names = traced.names
        return cls(ours, theirs, names)


class _Traced:
    """The function of tensors; without statistics that of the normaliser."""

    def __init__(self, shape: Shape, kind: Kind, statistics: tuple[Statistic, ...]) -> None:
        self.shape = shape
        self.kind = kind
        self.statistics = statistics
        self.names: list[tuple[str, str]] = []

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        shape, kind, inputs = self.shape, self.kind, iter(tensors)
        query, key, query_position, key_position = (next(inputs) for _ in range(4))
        logits = torch.bmm(query, key.transpose(1, 2)).view(-1, shape.query, shape.key)
        if shape.softcap is not None:
            logits = torch.tanh(logits / shape.softcap) * shape.softcap
        if shape.alibi:
            distance = (query_position[:, None] - key_position).abs().to(logits.dtype)
            logits = logits - next(inputs)[:, None, None] * distance
        if shape.num_distances:
            index = query_position[:, None] - key_position - shape.first_distance
            logits = logits + next(inputs)[:, index.clamp(0, shape.num_distances - 1).long()]
        seen = None
        if kind.masked:
            seen = (key_position >= next(inputs)[:, None]) & (key_position < next(inputs)[:, None])
            seen = seen & next(inputs) if shape.hidden else seen
            logits = torch.where(seen, logits, MASKED)
        if not self.statistics:
            maximum = logits.amax(-1)
            return [maximum, (logits - maximum[..., None]).exp().sum(-1)]
        shift, excess = next(inputs), next(inputs)
        log_probability = (logits - shift[..., None]) - excess[..., None]
        if seen is not None:
            log_probability = torch.where(seen, log_probability, MASKED)
        query_token, key_token, previous_token = inputs if shape.tokens else (None, None, None)
        block = TracedBlock(
            log_probability=log_probability,
            log_sum_exp=shift + excess,
            query_position=query_position,
            key_position=key_position,
            query_token=query_token,
            key_token=key_token,
            previous_token=previous_token,
            is_far=kind.far,
            least_key=0 if kind.masked else LEAST_KEY,
            grain=shape.grain,
        )
        parts = {s.key: s.blocked(block) for s in self.statistics}
        self.names = [(key, suffix) for key, arrays in parts.items() for suffix in arrays]
        return [parts[key][suffix] for key, suffix in self.names]


def _num_scores_inputs(shape: Shape, kind: Kind) -> int:
    return 4 + shape.alibi + bool(shape.num_distances) + (2 + shape.hidden if kind.masked else 0)


def _example(shape: Shape, kind: Kind) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    head, reach = shape.kv_head * shape.group, LEAST_KEY + 2 * (shape.query + shape.key)
    key = torch.arange(shape.key, dtype=torch.int32) + (LEAST_KEY if kind.far else 0)
    query = torch.arange(shape.query, dtype=torch.int32) + (reach if kind.far else shape.key // 2)
    tensors = [
        torch.randn(shape.kv_head, shape.group * shape.query, shape.channel, generator=random) * shape.channel**-0.5,
        torch.randn(shape.kv_head, shape.key, shape.channel, generator=random),
        query,
        key,
    ]
    if shape.alibi:
        tensors.append(torch.linspace(0.01, 0.5, head))
    if shape.num_distances:
        tensors.append(torch.randn(head, shape.num_distances, generator=random))
    if kind.masked:
        tensors += [torch.zeros_like(query), query + 1]
        if shape.hidden:
            tensors.append(key % 3 != 0)
    tensors += [torch.full((head, shape.query), 6.0), torch.zeros(head, shape.query)]
    if shape.tokens:
        tensors += [query % 7, key % 7, (key - 1) % 7]
    return tensors

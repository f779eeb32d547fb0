"""Ranks in a ring: each holds a stretch of one prompt, and hands the stretches of keys on to the next."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from probe.errors import RankLost, UsageError
from probe.kernels.call import Call

Move = tuple[Callable[..., Any], Tensor, int]
"""`isend` or `irecv`, a tensor that is contiguous, and the rank that it goes to or comes from."""


@dataclass(frozen=True)
class Stretch:
    """Which queries and keys a rank brings to a call, and what has to be the same on all ranks. All are integers."""

    query_start: int
    """Position of its first query."""
    num_queries: int
    """How many queries it has; 0 for a rank without."""
    key_start: int
    """Position of its first key."""
    num_keys: int
    """How many keys it holds; 0 for a rank without."""
    layer: int
    """Index of the attention layer."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key-value heads."""
    causal: int
    """Whether keys after the query are hidden."""
    window: int
    """Positions that a query sees; −1 for all."""
    decodes: int
    """Whether the queries are of decoding."""
    has_log_sum_exp: int
    """Whether the log-sum-exp over the keys of all ranks was handed over."""
    has_documents: int
    """Whether documents are packed."""
    hides_keys: int
    """Whether keys are hidden from all."""
    has_tokens: int
    """Whether token ids are known."""

    @classmethod
    def of(cls, call: Call) -> Stretch:
        """Return a call's."""
        return cls(
            query_start=call.query_start,
            num_queries=call.num_queries,
            key_start=call.key_start,
            num_keys=call.num_keys,
            layer=call.layer,
            num_heads=call.num_heads,
            num_kv_heads=call.num_kv_heads,
            causal=int(call.causal),
            window=-1 if call.window is None else call.window,
            decodes=int(call.phase == "decode"),
            has_log_sum_exp=int(call.log_sum_exp is not None),
            has_documents=int(call.document is not None),
            hides_keys=int(call.key_visible is not None),
            has_tokens=int(call.tokens is not None),
        )

    @property
    def query_stop(self) -> int:
        """Position after its last query."""
        return self.query_start + self.num_queries

    @property
    def key_stop(self) -> int:
        """Position after its last key."""
        return self.key_start + self.num_keys

    def sees(self, other: Stretch) -> bool:
        """Return whether causality and the window let any of its queries see any of another's keys."""
        if not self.num_queries or not other.num_keys:
            return False
        if self.causal and other.key_start >= self.query_stop:
            return False
        before = other.key_stop - 1 > self.query_start - self.window
        after = other.key_start < self.query_stop - 1 + self.window
        return self.window < 0 or (before and after)


class Ring:
    """The ranks of `torch.distributed`'s default group, or of another one, in their order.

    Every rank has to make the same calls in the same order. What a rank waits for comes within `timeout` seconds, or
    `RankLost` names the rank that it did not come from: that one may have died, or wait for another one itself.
    Positions and sizes travel in tensors on the CPU, stretches on the device they are on: a group with GPUs is made
    with the backend `cpu:gloo,cuda:nccl`.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, timeout: float = 1800.0) -> None:
        """Take part; raises `UsageError` where `torch.distributed` has not been started."""
        if not (dist.is_available() and dist.is_initialized()):
            raise UsageError(
                "torch.distributed has not been started: run under torchrun, and call "
                "torch.distributed.init_process_group first"
            )
        self.group = group
        self.timeout = timeout
        self.rank = dist.get_rank(group)
        """This rank."""
        self.size = dist.get_world_size(group)
        """How many ranks there are."""
        self.bytes_sent = 0
        """What this rank has sent of keys, values and what goes with them."""

    def everywhere(self, own: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Return every rank's integers, on the CPU; `lengths` says how many each brings."""
        own = own.cpu().long().contiguous()
        found = [own if rank == self.rank else own.new_empty(length) for rank, length in enumerate(lengths)]
        others = [rank for rank in range(self.size) if rank != self.rank]
        moves: list[Move] = [(dist.isend, own, rank) for rank in others]
        moves += [(dist.irecv, found[rank], rank) for rank in others]
        self._finish(self._start(moves), "what it brings")
        return found

    def stretches(self, call: Call) -> list[Stretch]:
        """Return every rank's stretch of a call; raises `ValueError` where they do not make one call together."""
        own = torch.tensor(dataclasses.astuple(Stretch.of(call)))
        found = [Stretch(*numbers.tolist()) for numbers in self.everywhere(own, [len(own)] * self.size)]
        for name in [field.name for field in dataclasses.fields(Stretch)][4:]:
            if len(values := {getattr(each, name) for each in found}) > 1:
                raise ValueError(f"the ranks' calls differ in {name}: {sorted(values)}")
        stop: int | None = None
        for rank, each in enumerate(found):
            if each.num_keys and stop not in (None, each.key_start):
                raise ValueError(f"rank {rank}'s keys begin at {each.key_start}, those before it end at {stop}")
            stop = each.key_stop if each.num_keys else stop
            if each.num_queries and not each.key_start <= each.query_start < each.query_stop <= each.key_stop:
                raise ValueError(
                    f"rank {rank} has the queries {each.query_start} to {each.query_stop} and not their own keys"
                )
        if found[0].decodes and sum(each.num_queries > 0 for each in found) > 1:
            raise ValueError("the queries of a call of decoded tokens are on more than one rank")
        return found

    def around(
        self, own: Mapping[str, Tensor], axes: Mapping[str, int], stretches: Sequence[Stretch]
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield the rank and the tensors of each stretch of keys that this rank's queries may see, its own first.

        `axes` says along which axis of each tensor the keys lie. While one stretch is worked on the next one arrives:
        beside its own a rank holds two. Stretches go from each rank to the next, as far as one is left that needs them.
        """
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        here, held = self.rank, {name: own[name].contiguous() for name in axes}
        for step in range(1, self.size + 1):
            coming = (self.rank - step) % self.size
            moves: list[Move] = []
            arriving = {}
            if step < self.size and self._goes_to(after, here, stretches):
                moves += [(dist.isend, each, after) for each in held.values()]
                self.bytes_sent += sum(each.numel() * each.element_size() for each in held.values())
            if step < self.size and self._goes_to(self.rank, coming, stretches):
                for name, axis in axes.items():
                    shape = list(own[name].shape)
                    shape[axis] = stretches[coming].num_keys
                    arriving[name] = own[name].new_empty(shape)
                moves += [(dist.irecv, each, before) for each in arriving.values()]
            works = self._start(moves)
            if held and stretches[self.rank].sees(stretches[here]):
                yield here, held
            self._finish(works, f"the keys of layer {stretches[0].layer}")
            here, held = coming, arriving

    def _goes_to(self, rank: int, source: int, stretches: Sequence[Stretch]) -> bool:
        """Return whether a stretch of keys has to come to a rank: it, or one of those after it, sees some of them."""
        further = (source - rank) % self.size
        return any(stretches[(rank + each) % self.size].sees(stretches[source]) for each in range(further))

    def pass_on(self, tensor: Tensor, source: int, target: int) -> Tensor | None:
        """Return at rank `target` what rank `source` has; every rank gives a tensor of that shape."""
        if self.rank == source:
            self._finish(self._start([(dist.isend, tensor.contiguous(), target)]), "a key")
        if self.rank == target:
            return self._received(torch.empty_like(tensor, memory_format=torch.contiguous_format), source, "a key")
        return None

    def give(self, tensors: Mapping[str, Tensor], rank: int) -> None:
        """Send tensors to a rank, which has to `take` them; their names, shapes and dtypes go first."""
        whole = {name: each.cpu().contiguous() for name, each in tensors.items()}
        kinds = [[name, str(each.dtype).removeprefix("torch."), list(each.shape)] for name, each in whole.items()]
        header = torch.tensor(list(json.dumps(kinds).encode()), dtype=torch.uint8)
        parts = [torch.tensor([len(header)]), header, *whole.values()]
        self._finish(self._start([(dist.isend, each, rank) for each in parts]), "room for what was computed")

    def take(self, rank: int) -> dict[str, Tensor]:
        """Return the tensors that a rank gives to this one, on the CPU."""
        length = self._received(torch.empty(1, dtype=torch.int64), rank)
        header = self._received(torch.empty(int(length), dtype=torch.uint8), rank)
        return {
            name: self._received(torch.empty(shape, dtype=getattr(torch, kind)), rank)
            for name, kind, shape in json.loads(bytes(header.tolist()))
        }

    def gather(self, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield at rank 0 the tensors of every rank, in their order, on the CPU; nothing at the others."""
        if self.rank:
            self.give(tensors, 0)
            return
        yield {name: each.cpu() for name, each in tensors.items()}
        for rank in range(1, self.size):
            yield self.take(rank)

    def _received(self, tensor: Tensor, rank: int, what: str = "what it computed") -> Tensor:
        self._finish(self._start([(dist.irecv, tensor, rank)]), what)
        return tensor

    def _start(self, moves: Sequence[Move]) -> list[tuple[dist.Work, int]]:
        # As bytes: not every backend knows every dtype. Nothing is sent of what is empty.
        moves = [each for each in moves if each[1].numel()]
        steps = [
            dist.P2POp(move, tensor.flatten().view(torch.uint8), group=self.group, group_peer=rank)
            for move, tensor, rank in moves
        ]
        if not steps:
            return []
        try:
            works = dist.batch_isend_irecv(steps)
        except RuntimeError as error:
            raise self._lost(moves[0][2], "a connection", error) from error
        # NCCL gives one for all of them.
        ranks = [rank for _, _, rank in moves]
        return list(zip(works, ranks if len(works) == len(ranks) else ranks[:1], strict=True))

    def _finish(self, works: Sequence[tuple[dist.Work, int]], what: str) -> None:
        for work, rank in works:
            try:
                work.wait(timedelta(seconds=self.timeout))
            except RuntimeError as error:
                raise self._lost(rank, what, error) from error

    def _lost(self, rank: int, what: str, error: Exception) -> RankLost:
        words = str(error).strip().splitlines()
        return RankLost(
            f"rank {self.rank} of {self.size} waited for rank {rank} ({what}), which is gone, or did not answer within "
            f"{self.timeout:g} s: {words[0] if words else type(error).__name__}"
        )

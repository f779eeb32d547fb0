"""Policies that evict token by token, by the attention that keys receive."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.errors import UsageError
from probe.hooks.attention.eviction import FOREVER, Eviction, Kept, logits_of_rows, probabilities
from probe.kernels.call import Call

Prompt = Literal["streamed", "whole"]


@dataclass(frozen=True)
class EvictionByStep(Eviction):
    """A policy that looks at each query's attention and then evicts down to the budget, causally.

    A query sees the `budget` keys that were kept before it, and its own; of these all but `budget` go when it has
    attended. The definition is sequential: a query's attention depends on what the ones before it left. A subclass
    says what a key is worth. Of keys worth the same the oldest goes.
    """

    prompt: Prompt = "streamed"
    """`streamed`: eviction begins as soon as the budget is full. `whole`: the prompt's queries see the full cache, as
    they do where a prompt is put through at once, and so does its last token, after which eviction begins."""

    cumulative: ClassVar[bool] = False
    """Whether a key is worth what all queries so far have given it, or what the last one gave."""
    shared: ClassVar[bool] = False
    """Whether the heads of a layer keep the same tokens, or each key-value head its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt not in get_args(Prompt):
            raise UsageError(
                f"{type(self).__name__}: prompt is {self.prompt!r}; expected {', '.join(get_args(Prompt))}"
            )

    @abstractmethod
    def num_protected(self, budget: int) -> int:
        """Return how many of the last tokens are kept whatever they are worth, at most `budget`."""

    def evict(self, before: Kept, call: Call) -> Kept:
        """See `Eviction.evict`."""
        first, stop = call.query_start, call.query_start + call.num_queries
        streamed = self.prompt == "streamed"
        evicts = streamed or before.decoded_from is not None
        if not evicts and not self.cumulative:
            return before
        budget = self.tokens(before) if evicts else FOREVER
        # Until the budget is full nothing goes, and queries need not be taken one by one.
        filled = min(stop, max(first, budget)) if streamed or not evicts else first
        until = before.until.clone()
        worth = torch.zeros(1 if self.shared else len(until), stop, device=until.device)
        if before.memory is not None:
            worth[:, :first] = before.memory
        if self.cumulative and first < filled:
            for _, logits in logits_of_rows(call, first, filled):
                worth[:, : logits.shape[-1]] += self._by_set(call, logits, len(worth)).sum(1)
        if filled < stop:
            self._step_by_step(call, filled, stop, budget, until, worth)
        return dataclasses.replace(before, until=until, memory=worth if self.cumulative else None)

    def _by_set(self, call: Call, logits: Float[Tensor, "head query key"], num_sets: int) -> Tensor:
        """Return the mean probability over the heads that keep the same tokens, `[set query key]`."""
        sink = None
        if call.sink_logit is not None:
            sink = call.sink_logit[:, None, None].expand(-1, logits.shape[1], 1)
        of_heads = probabilities(logits, sink)
        return of_heads.reshape(num_sets, -1, *of_heads.shape[1:]).mean(1)

    def _step_by_step(
        self, call: Call, first: int, stop: int, budget: int, until: Int[Tensor, "kv_head key"],
        worth: Float[Tensor, "set key"],
    ) -> None:  # fmt: skip
        """Take queries one by one from position `first` on, writing `until` and `worth`."""
        num_sets, protected = len(worth), self.num_protected(budget)
        # Positions in order, so that the last columns are the latest tokens.
        held = torch.stack([torch.nonzero(each[:first] == FOREVER).flatten() for each in until[:num_sets]])
        for start, logits in logits_of_rows(call, first, stop):
            for row in range(logits.shape[1]):
                held = torch.cat([held, held.new_full((num_sets, 1), start + row)], -1)
                of_row = logits[:, row].unflatten(0, (num_sets, -1))
                among = of_row.gather(-1, held[:, None].expand(-1, of_row.shape[1], -1))
                sink = None if call.sink_logit is None else call.sink_logit.view(num_sets, -1, 1)
                total = probabilities(among, sink).mean(1)
                if self.cumulative:
                    total += worth.gather(-1, held)
                    worth.scatter_(-1, held, total)
                surplus = held.shape[1] - budget
                if surplus > 0:
                    least = _least(total[:, : held.shape[1] - protected], surplus)
                    until.scatter_(1, held.gather(-1, least).expand(len(until), -1), start + row + 1)
                    held = _without(held, least)


def _without(held: Int[Tensor, "set kept"], least: Int[Tensor, "set least"]) -> Int[Tensor, "set stays"]:
    if least.shape[1] == 1:
        stays = torch.arange(held.shape[1] - 1, device=held.device)
        return held.gather(-1, stays + (stays >= least))
    return held[torch.ones_like(held, dtype=torch.bool).scatter_(-1, least, False)].view(len(held), -1)


def _least(worth: Float[Tensor, "set key"], number: int) -> Int[Tensor, "set least"]:
    if number == 1:
        return worth.argmin(-1, keepdim=True)
    return worth.sort(dim=-1, stable=True).indices[:, :number]

"""Policies that choose once, when the prompt has gone through, which of its keys the decoded tokens will find."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.errors import UsageError
from probe.hooks.attention.eviction import FOREVER, Eviction, Kept, logits_of_rows, probabilities
from probe.kernels.call import Call

LastToken = Literal["evicted", "full"]


@dataclass(frozen=True)
class EvictionAtPromptEnd(Eviction):
    """A policy that evicts once: the prompt's queries see the full cache, the decoded ones what was kept of it.

    Tokens decoded later all stay. A subclass gives `kept_keys`, and in `num_observed` the queries that it looks at.
    """

    last_token: LastToken = "evicted"
    """Whether the prompt's last token, from whose logits an answer's first token comes, reads the cache `evicted`, or
    `full` as in the papers, which give that token for free. The choice is the same: the last token's query and key are
    part of what it is made from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_token not in get_args(LastToken):
            raise UsageError(
                f"{type(self).__name__}: last_token is {self.last_token!r}; expected {', '.join(get_args(LastToken))}"
            )

    @property
    def num_observed(self) -> int:
        """How many of the prompt's last queries the choice depends on."""
        return 0

    @abstractmethod
    def kept_keys(self, observed: Observed, budget: int) -> Int[Tensor, "kv_head kept"]:
        """Return positions of the keys that each key-value head keeps, of more than `budget` that there are."""

    def evict(self, before: Kept, call: Call) -> Kept:
        """See `Eviction.evict`."""
        pieces: tuple[Call, ...] = before.memory or ()
        if before.decoded_from is None:
            # Back to where this call begins as much must be known as was there.
            needed = [each for each in pieces if _stop(each) > call.query_start - self.num_observed]
            return dataclasses.replace(before, memory=(*needed, _without_keys(call)) if self.num_observed else ())
        if call.query_start > before.decoded_from:
            return before
        end = before.decoded_from + 1
        if end <= (budget := self.tokens(before)):
            return before
        kept = self.kept_keys(Observed((*pieces, _without_keys(call)), call, end), budget)
        until = before.until.clone()
        until[:, : end - 1] = end - (self.last_token == "evicted")
        # A token that does not stay sees itself all the same.
        until[:, end - 1] = end
        until.scatter_(1, kept.to(until.device), FOREVER)
        return dataclasses.replace(before, until=until)


@dataclass(frozen=True, eq=False)
class Observed:
    """What a policy may look at when the prompt has gone through."""

    pieces: tuple[Call, ...]
    """The calls in which its last queries came, without their keys."""
    call: Call
    """The call that begins the decoding, with all the keys."""
    end: int
    """Tokens in the cache that is to be evicted from: the prompt's."""

    @property
    def key(self) -> Float[Tensor, "kv_head key channel"]:
        """The keys in the cache."""
        return self.call.key[:, : self.end]

    def rows(self, num_queries: int) -> Iterator[Float[Tensor, "head query key"]]:
        """Yield the probabilities that the last so many of its queries give to its keys, some queries at a time."""
        for piece in self.pieces:
            first, stop = max(piece.query_start, self.end - num_queries), min(_stop(piece), self.end)
            if first >= stop:
                continue
            key = self.call.key[:, : _stop(piece)]
            sink = None if piece.sink_logit is None else piece.sink_logit[:, None, None]
            for _, logits in logits_of_rows(dataclasses.replace(piece, key=key, value=key), first, stop):
                share = None if sink is None else sink.expand(-1, logits.shape[1], 1)
                rows = probabilities(logits, share)[..., : self.end]
                yield torch.nn.functional.pad(rows, (0, self.end - rows.shape[-1]))


def _stop(call: Call) -> int:
    return call.query_start + call.num_queries


def _without_keys(call: Call) -> Call:
    return dataclasses.replace(call, key=call.key[:, :0], value=call.value[:, :0], log_sum_exp=None, tokens=None)

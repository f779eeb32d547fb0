"""Policies that choose once, when the prompt has gone through, which of its keys the decoded tokens will find."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.errors import UsageError
from probe.hooks.attention.chosen_heads import check_choice
from probe.hooks.attention.eviction import FOREVER, Eviction, Kept, logits_of_rows, probabilities
from probe.hooks.sequence.sample_read import sample_read
from probe.kernels.call import Call
from probe.sample import Sample

LastToken = Literal["evicted", "full"]
Question = Literal["seen", "unseen"]


@dataclass(frozen=True)
class EvictionAtPromptEnd(Eviction):
    """A policy that evicts once: the prompt's queries see the full cache, the decoded ones what was kept of it.

    Tokens that come later all stay. A subclass gives `kept_keys`, and in `num_observed` the queries that it looks at.
    """

    last_token: LastToken = "evicted"
    """Whether the prompt's last token, from whose logits an answer's first token comes, reads the cache `evicted`, or
    `full` as in the papers, which give that token for free. The choice is the same: the last token's query and key are
    part of what it is made from."""

    question: Question = "seen"
    """Whether the choice is made when the prompt has gone through, the question `seen`; or before the span `question`
    of the sample that is read, `unseen`: the question's tokens then read the evicted cache, as the answer's do. A cache
    that is kept for many questions is of the second kind (NVIDIA's kvpress measures it so), and the two differ much."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds in (("last_token", LastToken), ("question", Question)):
            check_choice(type(self).__name__, name, getattr(self, name), kinds)
        if self.question == "unseen" and self.last_token == "full":
            raise UsageError(
                f"{type(self).__name__}: last_token full and question unseen contradict each other: the prompt's last "
                "token comes after what is chosen before the question"
            )

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        super().check(model, sample)
        if self.question == "unseen":
            self._question(sample)

    def _question(self, sample: Sample | None) -> int:
        """Return where the question begins."""
        found = [] if sample is None else [span.start for span in sample.spans if span.name == "question"]
        if not found or found[0] == 0:
            where = "no sample is being read" if sample is None else f"sample {sample.name!r} has none after some text"
            raise UsageError(f"{type(self).__name__}: question unseen needs a span `question`, and {where}")
        return found[0]

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
        first, stop = self._begins(before), call.query_start + call.num_queries
        if first is not None and call.query_start > first:
            return before
        if first is None or stop <= first:
            # Back to where this call begins as much must be known as was there.
            needed = [each for each in pieces if _stop(each) > call.query_start - self.num_observed]
            return dataclasses.replace(before, memory=(*needed, _without_keys(call)) if self.num_observed else ())
        end = first if self.question == "unseen" or self.last_token == "full" else first + 1
        if end <= (budget := self.tokens(before)):
            return before
        kept = self.kept_keys(Observed((*pieces, _without_keys(call)), call, end), budget)
        position = torch.arange(end, dtype=torch.int32, device=before.until.device)
        until = before.until.clone()
        # A token that does not stay sees itself all the same.
        until[:, :end] = (position + 1).clamp(min=first)
        until.scatter_(1, kept.to(until.device), FOREVER)
        return dataclasses.replace(before, until=until)

    def _begins(self, before: Kept) -> int | None:
        """Return the position of the first query that reads the evicted cache; None where that is not known yet."""
        if self.question == "unseen":
            return self._question(sample_read())
        if before.decoded_from is None:
            return None
        return before.decoded_from + (self.last_token == "full")


@dataclass(frozen=True, eq=False)
class Observed:
    """What a policy may look at when the prompt has gone through."""

    pieces: tuple[Call, ...]
    """The calls in which its last queries came, without their keys."""
    call: Call
    """The call in which eviction begins, with all the keys."""
    end: int
    """Tokens in the cache that is to be evicted from: the prompt's, or those before its question."""

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

"""Keep the first tokens and the latest ones (StreamingLLM)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.eviction import budget_in_tokens, check_budget, check_share
from probe.hooks.attention.other_logits import OtherLogits
from probe.hooks.attention.rotation import rotations
from probe.hooks.attention.tap import site
from probe.hooks.sequence.prompt_length import PromptLengths
from probe.kernels.call import Call
from probe.kernels.score_change import MASKED, Place, ScoreChange
from probe.sample import Sample

Positions = Literal["cache", "text"]


@dataclass(frozen=True)
class keep_sinks_and_recent(ChangeOfCalls):
    """Keep a few first tokens and a window of the latest: `with keep_sinks_and_recent(512)(model):`.

    A query sees the first `num_first` tokens, the `budget − num_first` before it, and itself. Xiao et al. (2023, arXiv
    2309.17453, StreamingLLM), whose positions are those inside the cache: once the first tokens are no neighbours any
    more they stand right before the window. Both are of the prompt's queries as of the decoded ones. What is seen
    follows from positions alone, so it acts on layers with a sliding window too. Whether the first tokens are sinks in
    a model is for the model to say.
    """

    budget: float
    """Tokens that are kept, first and latest together; below 1 a share of the prompt's tokens, rounded down."""
    num_first: int = 4
    """First tokens that stay; four in the paper."""
    positions: Positions = "cache"
    """`cache`: a token stands where it lies in the cache, as in the paper; asks for rotary positions. `text`: it stays
    where it stood in the text, as where keys are evicted and nothing more is done."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget("keep_sinks_and_recent", self.budget)
        if self.num_first < 0:
            raise UsageError(f"keep_sinks_and_recent: num_first is at least 0, not {self.num_first}")
        if 1 <= self.budget < self.num_first:
            raise UsageError(
                f"keep_sinks_and_recent: budget {self.budget} has no room for num_first, {self.num_first} tokens"
            )
        if self.positions not in get_args(Positions):
            raise UsageError(
                f"keep_sinks_and_recent: positions is {self.positions!r}; expected {', '.join(get_args(Positions))}"
            )

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"cache", "positions"} if self.positions == "cache" else {"cache"})

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        super().check(model, sample)
        check_share("keep_sinks_and_recent", self.budget, sample, self.num_first)

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        turning = rotations(model, 1, "keep_sinks_and_recent") if self.positions == "cache" else {}
        lengths = PromptLengths()

        def change(here: site, sample: int, call: Call) -> Call:
            length = 0 if self.budget >= 1 else lengths.of(here, sample, "keep_sinks_and_recent")
            budget = budget_in_tokens(self.budget, length)
            if not call.causal or call.query_start + call.num_queries - 1 <= budget:
                return call
            others = None
            if self.num_first and call.layer in turning:
                position = call.query_start + torch.arange(call.num_queries, dtype=torch.float64)
                # The newest token is the cache's last, right after the budget.
                nearer = position.clamp(max=budget) - position
                rotation = turning[call.layer]
                query = rotation.turned(call.query, nearer[:, None] * rotation.inverse_frequency)
                others = OtherLogits.of(dataclasses.replace(call, query=query))
            kept = _first_and_latest(budget, self.num_first, others)
            return dataclasses.replace(call, changes=(*call.changes, kept), log_sum_exp=None)

        return change


@dataclass(frozen=True, eq=False)
class _first_and_latest(ScoreChange):
    budget: int
    num_first: int
    others: OtherLogits | None
    """The logits of the first tokens' keys, where queries meet them otherwise than the latest ones."""

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        recent = self.budget - self.num_first
        if place.key_start >= self.num_first:
            if place.query_stop - 1 - place.key_start <= recent:
                return logits
            if place.query_start - place.key_stop >= recent:
                return logits.fill_(MASKED)
            return logits.masked_fill_(place.distance > recent, MASKED)
        first = place.key_position < self.num_first
        logits = logits.masked_fill_((place.distance > recent) & ~first, MASKED)
        if self.others is None:
            return logits
        moved = (place.query_position > self.budget)[:, None] & first
        return torch.where(moved, self.others(logits, place), logits)

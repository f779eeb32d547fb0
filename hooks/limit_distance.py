"""Λ-shaped attention with a limit on distances (LM-Infinite)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.other_logits import OtherLogits
from probe.hooks.attention.rotation import rotations
from probe.hooks.attention.tap import site
from probe.kernels.call import Call
from probe.kernels.score_change import MASKED, Place, ScoreChange


@dataclass(frozen=True)
class limit_distance(ChangeOfCalls):
    """See the first tokens and the nearest ones, never further away than was trained: `limit_distance(256)(model)`.

    A query sees the first `num_first` tokens and the `window` tokens that end with its own; the first ones as if they
    stood at most `limit` tokens before it. Han et al. (2024, arXiv 2308.16137, LM-Infinite: the Λ-shaped mask and the
    distance limit), without their optional tokens of the middle. A window that holds the whole prompt changes nothing.
    """

    window: int
    """Tokens that a query sees before it, its own included; the authors take the training length."""
    num_first: int = 10
    """Tokens at the beginning that every query sees; 10 to 100 are equivalent in the paper."""
    limit: int | None = -1
    """The longest distance that a query seems to have from the first tokens; −1 for `window`, None for no limit, which
    is all that a model without rotary positions can be asked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise UsageError(f"limit_distance: window is at least 1, not {self.window}")
        if self.num_first < 0:
            raise UsageError(f"limit_distance: num_first is at least 0, not {self.num_first}")
        if self.limit is not None and self.limit < 1 and self.limit != -1:
            raise UsageError(f"limit_distance: limit is at least 1, −1 for the window, or None, not {self.limit}")

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset() if self.limit is None else frozenset({"positions"})

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        limit = self.window if self.limit == -1 else self.limit
        turning = {} if limit is None else rotations(model, self.window, "limit_distance")

        def change(here: site, sample: int, call: Call) -> Call:
            # Before the window is full every key is near.
            if not call.causal or call.query_start + call.num_queries <= self.window:
                return call
            others = None
            if limit is not None and call.layer in turning:
                rotation = turning[call.layer]
                position = call.query_start + torch.arange(call.num_queries, dtype=torch.float64)
                # A query that seems to stand at `limit` is at most so far from position 0.
                further = position.clamp(max=limit) - position
                query = rotation.turned(call.query, further[:, None] * rotation.inverse_frequency)
                others = OtherLogits.of(dataclasses.replace(call, query=query))
            shape = _lambda(self.window, self.num_first, others)
            return dataclasses.replace(call, changes=(*call.changes, shape), log_sum_exp=None)

        return change


@dataclass(frozen=True, eq=False)
class _lambda(ScoreChange):
    window: int
    num_first: int
    others: OtherLogits | None
    """The logits of the first tokens' keys, where queries meet them otherwise than the near ones."""

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        # Most blocks lie wholly near or wholly far, and need no look at their single distances.
        if place.query_stop - 1 - place.key_start < self.window:
            return logits
        if place.key_start >= self.num_first and place.query_start - place.key_stop >= self.window - 1:
            return logits.fill_(MASKED)
        far, of_first = place.distance >= self.window, place.key_position < self.num_first
        logits = logits.masked_fill_(far & ~of_first, MASKED)
        if self.others is None or place.key_start >= self.num_first:
            return logits
        return torch.where(far & of_first, self.others(logits, place), logits)

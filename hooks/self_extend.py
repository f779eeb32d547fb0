"""Self-Extend: true positions nearby, positions in groups beyond."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change
from probe.hooks.attention.change_of_positions import ChangeOfPositions, refuse_packed
from probe.hooks.attention.other_logits import OtherLogits
from probe.hooks.attention.rotation import rotations
from probe.hooks.attention.tap import site
from probe.hooks.attention.turner import turners
from probe.kernels.call import Call
from probe.kernels.score_change import Place, ScoreChange


@dataclass(frozen=True)
class self_extend(ChangeOfPositions):
    """Put distant tokens into groups that share a position: `with self_extend(8, window=1024)(model):`.

    Keys nearer than `window` are met at their true distance; those beyond as if a query at i stood at
    floor(i / group) + window − window / group and a key at j at floor(j / group); both sorts of logits go through one
    softmax. Jin et al. (2024, arXiv 2401.01325, and their code, whose window / group is no whole number either where
    the group does not divide the window). With a group of 1, or a window that holds the prompt, it is the model.

    It reaches (L − window) · group + window tokens for a training length L; distances beyond that are as unseen as
    without it. Where rotary positions are scaled already, it regroups the positions, and the scaling stays. Refused for
    models without rotary positions and for packed documents.
    """

    group: int
    """Tokens that share a position beyond the window; the paper uses 2 to 64, its code 8 by default."""
    window: int
    """Nearest tokens that keep their distance, the query's own included (the code's neighbour window, 1024)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("group", "window"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UsageError(f"self_extend: {name} is a whole number, at least 1, not {getattr(self, name)!r}")

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        of_layer = rotations(model, 1, "self_extend")
        ahead = self.window - self.window / self.group
        keys = turners(of_layer, lambda position: (position / self.group).floor())
        queries = turners(of_layer, lambda position: (position / self.group).floor() + ahead)

        def change(here: site, sample: int, call: Call) -> Call:
            refuse_packed(call, "self_extend")
            near = call.query_start + call.num_queries - call.key_start <= self.window
            if self.group == 1 or near or call.layer not in of_layer:
                return call
            # Most keys are far: the call's own products become those in groups, and the near ones are put back.
            query = queries[call.layer](call.query, call.query_start)
            key = keys[call.layer](call.key, call.key_start)
            nearby = _near(self.window, OtherLogits.of(call))
            return dataclasses.replace(call, query=query, key=key, changes=(nearby, *call.changes), log_sum_exp=None)

        return change


@dataclass(frozen=True, eq=False)
class _near(ScoreChange):
    window: int
    true: OtherLogits

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        if place.query_start - (place.key_stop - 1) >= self.window:
            return logits
        near = self.true(logits, place)
        if place.query_stop - 1 - place.key_start < self.window:
            return near
        return torch.where(place.distance < self.window, near, logits)

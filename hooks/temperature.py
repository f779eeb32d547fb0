"""Attention at another temperature."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.tap import site
from probe.kernels.call import Call
from probe.kernels.score_change import MASKED, Place, ScoreChange


@dataclass(frozen=True)
class temperature(ChangeOfCalls):
    """Divide the logits by `tau` before the softmax: `with temperature(0.8)(model):` attends more sharply.

    Below 1 attention is sharper, above 1 flatter. Divided is all that enters the softmax: a logit after softcap and
    with its bias by distance, what interventions entered before have made of it, and a learned sink's logit. Chi et al.
    (2023, arXiv 2311.00684) align attention at a longer length so (`align_attention` solves for their τ); Liu et al.
    (2023, arXiv 2306.00946) train at other temperatures, which this does not. A τ of 1 changes nothing.
    """

    tau: float
    """What the logits are divided by; above 0. No default: it is the field to be tuned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tau < math.inf:
            raise UsageError(f"temperature: tau is a number above 0, not {self.tau!r}")

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""

        def change(here: site, sample: int, call: Call) -> Call:
            if self.tau == 1:
                return call
            sink = None if call.sink_logit is None else call.sink_logit / self.tau
            if call.softcap is None and call.alibi_slope is None and call.distance_bias is None and not call.changes:
                # The scale alone says it, and fused operators know a scale.
                return dataclasses.replace(call, scale=call.scale / self.tau, sink_logit=sink, log_sum_exp=None)
            changes = (*call.changes, _divided(self.tau))
            return dataclasses.replace(call, changes=changes, sink_logit=sink, log_sum_exp=None)

        return change


@dataclass(frozen=True, eq=False)
class _divided(ScoreChange):
    tau: float

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        # What an earlier change has hidden must stay as hidden as it was.
        return torch.where(logits <= MASKED / 2, logits, logits / self.tau)

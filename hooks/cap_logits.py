"""Logits that cannot grow without bound."""

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
class cap_logits(ChangeOfCalls):
    """Make every logit s `cap · tanh(s / cap)`: `with cap_logits(50.0)(model):`.

    The softcap that Gemma 2 is trained with (Gemma Team 2024, arXiv 2408.00118: 50 in attention), put on a model that
    was not. Capped is what the softmax takes: with biases by distance, after a softcap of the model's own and after
    interventions entered before; a learned sink's logit is left as it is. A cap far above all logits changes nearly
    nothing: s³ / (3 cap²).
    """

    cap: float = 50.0
    """Bound of the logits' absolute value; above 0. 50 is Gemma 2's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cap < math.inf:
            raise UsageError(f"cap_logits: cap is a number above 0, not {self.cap!r}")

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"softcap"})

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""

        def change(here: site, sample: int, call: Call) -> Call:
            if call.softcap is None and call.alibi_slope is None and call.distance_bias is None and not call.changes:
                return dataclasses.replace(call, softcap=self.cap, log_sum_exp=None)
            return dataclasses.replace(call, changes=(*call.changes, _capped(self.cap)), log_sum_exp=None)

        return change


@dataclass(frozen=True, eq=False)
class _capped(ScoreChange):
    cap: float

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        # What an earlier change has hidden stays hidden.
        return torch.where(logits <= MASKED / 2, logits, (logits / self.cap).tanh_().mul_(self.cap))

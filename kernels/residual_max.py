"""The largest channel of the residual stream: massive activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class residual_max(Statistic):
    """The largest absolute value of the residual stream at each token, and its channel (the lowest on a tie)."""

    kind = "residual"
    arrays: ClassVar = {
        "": ArrayFacts(("token",), "", merge="max"),
        "channel": ArrayFacts(("token",), "channel", merge="argmax", meaning="its channel"),
    }
    source = "Sun et al. 2024 (2402.17762), massive activations"

    def of_tokens(self, *tensors: Tensor) -> dict[str, Tensor]:
        (hidden,) = tensors
        largest = hidden.float().abs().max(-1)
        return {"": largest.values, "channel": largest.indices}

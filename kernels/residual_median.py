"""The usual size of a channel of the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class residual_median(Statistic):
    """The median of the absolute values of the residual stream's channels at each token.

    With an even number of channels it is the mean of the middle two. Beside `residual_max` it tells a massive
    activation: above 100 and above 1,000 times this median.
    """

    kind = "residual"
    arrays: ClassVar = {"": ArrayFacts(("token",), "")}
    source = "Sun et al. 2024 (2402.17762), massive activations"

    def of_tokens(self, *tensors: Tensor) -> dict[str, Tensor]:
        (hidden,) = tensors
        size = hidden.float().abs()
        # torch's median is the lower of the middle two, and NaN where any is.
        lower = size.median(-1).values
        upper = lower if size.shape[-1] % 2 else size.kthvalue(size.shape[-1] // 2 + 1, dim=-1).values
        return {"": torch.where(lower.isnan(), lower, (lower + upper) / 2)}

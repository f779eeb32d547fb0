"""Length of the residual stream's vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class residual_norm(Statistic):
    """L2 norm of the residual stream at each token, over all channels."""

    kind = "residual"
    arrays: ClassVar = {"": ArrayFacts(("token",), "")}
    source = "Gu et al. 2024 (2410.10781), norms of hidden states"

    def of_tokens(self, *tensors: Tensor) -> dict[str, Tensor]:
        (hidden,) = tensors
        return {"": hidden.float().norm(dim=-1)}

"""The normaliser of attention, as a logarithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.dense import Dense
from probe.kernels.normaliser import Normaliser
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class log_sum_exp(Statistic):
    """log Z_i = log Σ_j exp(s_ij), in nats, a learned sink's share included; −inf where a query sees nothing."""

    kind = "scan"
    arrays: ClassVar = {"": ArrayFacts(("head", "query"), "nats")}
    source = "this toolkit's own choice of a standard quantity"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        return {"": dense.log_sum_exp}

    def per_query(self, normaliser: Normaliser) -> dict[str, Tensor]:
        return {"": normaliser.log_sum_exp}

"""The largest logit of a query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.dense import Dense
from probe.kernels.normaliser import Normaliser
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class max_logit(Statistic):
    """max_j s_ij over the keys that query i sees, scaled and capped as the model does it; −inf where it sees none.

    A learned sink's logit does not count.
    """

    kind = "scan"
    arrays: ClassVar = {"": ArrayFacts(("head", "query"), "logit")}
    source = "Han et al. 2023 (2308.16137): logit explosion at unseen distances; this toolkit's own form"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        return {"": dense.logit.amax(-1)}

    def per_query(self, normaliser: Normaliser) -> dict[str, Tensor]:
        return {"": normaliser.max_logit}

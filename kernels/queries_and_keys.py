"""What any window of attention is computed from, exactly, after the model has gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.dense import Dense
from probe.kernels.normaliser import Normaliser
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class queries_and_keys(Statistic):
    """q_i, k_j and log Z_i of every query and key, from which p_ij follows for any window: `trace.window`.

    Here the log Z_i alone, never pooled; the vectors are the call's own, and are kept as they come. Asked for by layer,
    since each takes as much room as the layer's KV cache and its queries together.
    """

    kind = "scan"
    arrays: ClassVar = {"": ArrayFacts(("head", "query"), "nats")}
    source = "this toolkit's own"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        return {"": dense.log_sum_exp}

    @property
    def can_pool(self) -> bool:
        """A normaliser is needed for each query."""
        return False

    def per_query(self, normaliser: Normaliser) -> dict[str, Tensor]:
        return {"": normaliser.log_sum_exp}

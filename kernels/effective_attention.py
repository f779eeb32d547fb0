"""What a recurrent layer attends to when it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.hidden_attention import HiddenRow
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.stepwise import Stepwise


@dataclass(frozen=True)
class effective_attention(Statistic):
    """M_tj = ∂y_t / ∂v_j, the weight of value j in what a head reads at a decoding token t, averaged over its channels.

    In Mamba-2, gated delta nets and lightning attention all channels of a head have the same weight. It is signed and
    sums to nothing in particular. The skip of the input, output gates and norms come after y and are not in it.
    """

    kind = "recurrence"
    arrays: ClassVar = {
        "": ArrayFacts(("state_head", "row", "key"), ""),
        "magnitude": ArrayFacts(("state_head", "row", "key"), "", meaning="mean of |M_tj| over the head's channels"),
    }
    source = "Ali et al. 2024 (2403.01590), hidden attention"

    def reference(self, dense: Stepwise) -> dict[str, Tensor]:
        return {"": dense.attention.mean(-1), "magnitude": dense.attention.abs().mean(-1)}

    def of_row(self, row: HiddenRow) -> dict[str, Tensor]:
        return {"": row.weight, "magnitude": row.magnitude}

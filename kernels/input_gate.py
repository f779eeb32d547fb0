"""How much of each token a recurrent layer writes into its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.recurrence import Recurrence
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.stepwise import Stepwise


@dataclass(frozen=True)
class input_gate(Statistic):
    """The factor g_t with which each token's value is written into a head's state, averaged over the head's channels.

    Δ_t after the softplus in Mamba and Mamba-2, β_t in gated delta nets, √(1 − a_t²) times the input gate in RG-LRU,
    the share of the new token in RWKV-4, and 1 in lightning attention.
    """

    kind = "recurrence"
    arrays: ClassVar = {"": ArrayFacts(("state_head", "token"), "")}
    source = "Ben-Kish et al. 2024 (2406.14528): Δ_t as a token's importance; Yang et al. 2024 (2412.06464): β_t"

    def reference(self, dense: Stepwise) -> dict[str, Tensor]:
        return {"": dense.recurrence.gate.double().mean(-1).T}

    def of_steps(self, recurrence: Recurrence) -> dict[str, Tensor]:
        return {"": recurrence.gate.to(recurrence.exact_dtype).mean(-1).T}

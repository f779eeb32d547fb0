"""How much of its state a recurrent layer keeps at each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.recurrence import Recurrence
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.stepwise import Stepwise


@dataclass(frozen=True)
class decay(Statistic):
    """The factor a_t that multiplies each head's recurrent state at each token, averaged over the entries of the state.

    The same for all entries in Mamba-2, gated delta nets and lightning attention, for which it is no average. What a
    delta rule takes out of the state besides is not in it.
    """

    kind = "recurrence"
    arrays: ClassVar = {"": ArrayFacts(("state_head", "token"), "")}
    source = "Chen et al. 2024 (2410.07145): the decays exp(A Δ_t) per head"

    def reference(self, dense: Stepwise) -> dict[str, Tensor]:
        return {"": dense.decay.mean((-2, -1)).T}

    def of_steps(self, recurrence: Recurrence) -> dict[str, Tensor]:
        return {"": recurrence.decay()}

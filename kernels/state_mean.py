"""The mean of a recurrent state."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from probe.kernels.state_reading import StateReading
from probe.kernels.statistic import Statistic


@dataclass(frozen=True)
class state_mean(StateReading, Statistic):
    """Mean of the entries of each head's recurrent state S_t, after every `every` tokens and after the last one.

    What a state is in each family is in docs/recurrent.md.
    """

    source = "Chen et al. 2024 (2410.07145), analysis of the states: per head over all entries"

    def of_state(self, state: Float[Tensor, "state_head state channel"]) -> Float[Tensor, "state_head"]:
        return state.mean((-2, -1))

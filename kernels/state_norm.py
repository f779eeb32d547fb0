"""The size of a recurrent state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.kernels.state_reading import StateReading
from probe.kernels.statistic import Statistic


@dataclass(frozen=True)
class state_norm(StateReading, Statistic):
    """Frobenius norm of each head's recurrent state S_t, after every `every` tokens and after the last one.

    What a state is in each family is in docs/recurrent.md.
    """

    source = "Chen et al. 2024 (2410.07145), whose root mean square is the norm over the root of the number of entries"

    def of_state(self, state: Float[Tensor, "state_head state channel"]) -> Float[Tensor, "state_head"]:
        norm: Tensor = torch.linalg.vector_norm(state, dim=(-2, -1))
        return norm

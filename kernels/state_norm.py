"""The size of a recurrent state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.stepwise import Stepwise


@dataclass(frozen=True)
class state_norm(Statistic):
    """Frobenius norm of each head's recurrent state S_t, after every `every` tokens and after the last one.

    What a state is in each family is in docs/recurrent.md.
    """

    every: int = 64
    """Tokens from one reading of the state to the next; the state after the last token is read too."""

    kind = "recurrence"
    arrays: ClassVar = {"": ArrayFacts(("state_head", "position"), "")}
    source = "Chen et al. 2024 (2410.07145), whose root mean square is the norm over the root of the number of entries"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"state_norm: every is at least 1, not {self.every}")

    def reference(self, dense: Stepwise) -> dict[str, Tensor]:
        return {"": dense.after_every(self.every, self.of_state)}

    def of_state(self, state: Float[Tensor, "state_head state channel"]) -> Float[Tensor, "state_head"]:
        norm: Tensor = torch.linalg.vector_norm(state, dim=(-2, -1))
        return norm

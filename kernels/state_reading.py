"""What statistics of a recurrent state share: when the state is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.errors import UsageError
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.stepwise import Stepwise


@dataclass(frozen=True)
class StateReading(Statistic):
    """One number of each head's state, after every `every` tokens and after the last one: `of_state` says which."""

    every: int = 64
    """Tokens from one reading of the state to the next; the state after the last token is read too."""

    kind = "recurrence"
    arrays: ClassVar = {"": ArrayFacts(("state_head", "position"), "")}

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"{self.name()}: every is at least 1, not {self.every}")

    def reference(self, dense: Stepwise) -> dict[str, Tensor]:
        return {"": dense.after_every(self.every, self.of_state)}

"""Stretch or shrink the time of recurrent layers, for texts longer than those of the training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.recurrence.change_of_recurrences import ChangeOfRecurrences
from probe.hooks.recurrence.changes import Change
from probe.kernels.recurrence import Recurrence

RescaledBy = Literal["step", "decay"]


@dataclass(frozen=True)
class rescale_decay(ChangeOfRecurrences):
    """Multiply the time step of recurrent layers, or its part in the decay: `with rescale_decay(0.25)(model):`.

    With a factor c, a decay exp(Δ A) becomes exp(c Δ A). With `of="step"` it is Δ that is multiplied, so that what is
    written becomes c times as much too, as if the text were sampled c times as densely; with `of="decay"` it is A
    alone. For Mamba and Mamba-2 layers, Δ being the step after its softplus and limits. Two opposite uses: T_train / T
    lets a text of T tokens decay no more than one of the training (where what stands far back is lost; compare the
    interpolation of positions); T / T_train lets a state that never forgets do so in time (where what is recent is
    lost). Which of the two a model needs depends on it, and the choice of Δ or A is this toolkit's own.

    `of="decay"` is `forget_faster` with one factor for all heads; that changes the parameters, without another scan.
    """

    factor: float
    """c, above 0; 1 changes nothing."""
    of: RescaledBy = "step"
    """What is multiplied: `step` for Δ, `decay` for A."""
    beyond: int = 0
    """Tokens at the beginning that are left as they are, such as a training length; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.factor, int | float) or not 0 < self.factor < float("inf"):
            raise UsageError(f"rescale_decay: factor lies above 0, not {self.factor!r}")
        if self.of not in get_args(RescaledBy):
            raise UsageError(f"rescale_decay: of is {self.of!r}; expected {' or '.join(get_args(RescaledBy))}")
        if not isinstance(self.beyond, int) or self.beyond < 0:
            raise UsageError(f"rescale_decay: beyond is a number of tokens, not {self.beyond!r}")

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        if self.factor == 1:
            return frozenset()
        return frozenset({"decay of states"} if self.of == "decay" else {"decay of states", "what states take up"})

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfRecurrences.change`."""

        def change(sample: int, recurrence: Recurrence) -> Recurrence:
            if self.factor == 1 or recurrence.stop <= self.beyond:
                return recurrence
            factor = recurrence.value.new_full((recurrence.num_tokens, 1, 1), self.factor, dtype=recurrence.exact_dtype)
            factor[: max(0, self.beyond - recurrence.start)] = 1
            gate = recurrence.gate * factor if self.of == "step" else recurrence.gate
            return dataclasses.replace(recurrence, gate=gate, log_decay=recurrence.log_decay * factor[..., None])

        return change

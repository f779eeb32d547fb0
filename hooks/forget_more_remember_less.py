"""Let recurrent states keep less of themselves, and take up less of what is new."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.recurrence.change_of_recurrences import ChangeOfRecurrences
from probe.hooks.recurrence.changes import Change
from probe.kernels.recurrence import Recurrence


@dataclass(frozen=True)
class forget_more_remember_less(ChangeOfRecurrences):
    """Multiply the decay by `keep` and what is written by `write`: `with forget_more_remember_less(.98, 1.0)(model):`.

    h_t = (keep · a_t) h_{t−1} + write · (Δ_t B_t x_t), for Mamba and Mamba-2 layers. One of the remedies without
    training of Chen et al. (2024, arXiv 2410.07145), as remembered: neither this formula nor the authors' constants
    could be checked against the paper or its code, so there are no defaults. Both 1 change nothing. `forget_faster`
    raises the decay to a power instead, which leaves alone what hardly decays. The skip past the state stays.
    """

    keep: float
    """c_a, above 0 and at most 1: with .98, a state is down to a third after 55 tokens even where nothing decayed."""
    write: float
    """c_b, above 0 and at most 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep", "write"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value <= 1:
                raise UsageError(f"forget_more_remember_less: {name} lies above 0 and is at most 1, not {value!r}")

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        changed = {"decay of states": self.keep, "what states take up": self.write}
        return frozenset(what for what, factor in changed.items() if factor != 1)

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfRecurrences.change`."""

        def change(sample: int, recurrence: Recurrence) -> Recurrence:
            if self.keep == self.write == 1:
                return recurrence
            before = recurrence.log_factor
            factor = recurrence.value.new_full((recurrence.num_tokens, 1, 1, 1), math.log(self.keep))
            return dataclasses.replace(
                recurrence,
                gate=recurrence.gate * self.write,
                log_factor=factor if before is None else before + factor,
            )

        return change

"""Let recurrent states hold the last tokens alone, as a window that slides over the text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import NotReproducible, UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.recurrence.change_of_recurrences import ChangeOfRecurrences
from probe.hooks.recurrence.changes import Change, same_state
from probe.kernels.recurrence import BY_TOKEN, Recurrence
from probe.kernels.windowed_recurrence import WindowedRecurrence, followed, writes_of


@dataclass(frozen=True)
class slide_state(ChangeOfRecurrences):
    """Let a state hold the last `window` tokens alone: `with slide_state(64)(model):`.

    h_t^(r) = Σ_{t−r < j ≤ t} (Π_{j < i ≤ t} a_i) Δ_j B_j x_j, the state that the last r inputs of the layer leave from
    an empty one: what Chen et al. (2024, arXiv 2410.07145) write as the difference of the states at t and at t − r, as
    remembered (their code was not to be had). It is computed as a sum, not as that difference: where little decays, the
    difference of two large states would leave few digits. A window as long as the text changes nothing.

    For Mamba and Mamba-2 layers. Each layer's inputs are those of a model whose layers below slide as well; and the
    short convolution before the scan is left alone, so the whole model sees further back than `window`. The inputs of
    the last `window` tokens, and of all decoded ones, are kept. Other changes of recurrences are to be entered before.
    """

    window: int
    """r, in tokens, the current one included."""

    sees_every_phase: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.window, int) or self.window < 1:
            raise UsageError(f"slide_state: window is a whole number of tokens, at least 1, not {self.window!r}")

    @property
    def ends_in_a_window(self) -> bool:
        """Always."""
        return True

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"window of states"})

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfRecurrences.change`."""
        return _sliding(self.window, name_of(model))


class _sliding:
    """What is done to recurrences, and what is remembered of each layer and sample for it."""

    def __init__(self, window: int, name: str) -> None:
        self.window, self.name = window, name
        self.held: dict[tuple[int, int], _inputs] = {}

    def __call__(self, sample: int, recurrence: Recurrence) -> Recurrence:
        place = recurrence.layer, sample
        if recurrence.start == 0 or place not in self.held:
            self.held[place] = _inputs()
        try:
            earlier = self.held[place].before(recurrence, self.window)
        except LookupError as error:
            raise NotReproducible(f"{self.name}, layer {recurrence.layer}: slide_state: {error}") from error
        self.held[place].append(recurrence, self.window)
        if recurrence.stop <= self.window:
            return recurrence
        fields = {each.name: getattr(recurrence, each.name) for each in dataclasses.fields(Recurrence)}
        return WindowedRecurrence(**fields, window=self.window, earlier=earlier)

    def left(self, sample: int, layer: int, stop: int, state: Tensor) -> None:
        """See `Remembering`."""
        part = self.held[layer, sample].parts[-1]
        assert part.writes.stop == stop
        part.state = state.clone()


@dataclass
class _part:
    writes: Recurrence
    """Tokens that went in, no more of them than a window's."""
    state: Tensor | None = None
    """What the layer went on from after them, where they ended a forward."""


@dataclass
class _inputs:
    """What went into one layer for one sample, as far back as a window needs it, and as a rollback may."""

    parts: list[_part] = field(default_factory=list)

    def before(self, recurrence: Recurrence, window: int) -> Recurrence | None:
        """Return the tokens before a recurrence that its windows reach, and forget those that come after.

        Raises `LookupError` where they are not all there, or are another text's.
        """
        while self.parts and self.parts[-1].writes.stop > recurrence.start:
            self.parts.pop()
        first = max(0, recurrence.start - window + 1)
        if first == recurrence.start:
            return None
        if not self.parts or self.parts[-1].writes.stop != recurrence.start or not self._goes_on(recurrence):
            raise LookupError(
                f"it goes on at position {recurrence.start} from what it has not seen; enter the block before the "
                "prompt, and read one text at a time"
            )
        wanted: list[Recurrence] = []
        for part in reversed(self.parts):
            wanted.insert(0, part.writes)
            if part.writes.start <= first:
                break
        if recurrence.phase == "prefill":
            # A decoded token may be taken back, so what it sees stays.
            del self.parts[: -len(wanted)]
        joined = followed(wanted)
        return joined.cut(first - joined.start, joined.num_tokens, joined.state_before)

    def append(self, recurrence: Recurrence, window: int) -> None:
        """Keep a recurrence's inputs, as far as later windows reach back to them."""
        writes = writes_of(recurrence)
        writes = writes.cut(max(0, writes.num_tokens - max(window - 1, 1)), writes.num_tokens, writes.state_before)
        own = {name: each.clone() for name in BY_TOKEN if (each := getattr(writes, name)) is not None}
        self.parts.append(_part(dataclasses.replace(writes, **own)))

    def _goes_on(self, recurrence: Recurrence) -> bool:
        """Whether the state is the one that was left, but for its rounding on the way into the cache."""
        left = self.parts[-1].state
        return left is None or same_state(left, recurrence.state_before, recurrence.value.dtype)

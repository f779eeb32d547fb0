"""Interventions that are a function of recurrences: what decays, is written and is read in, the same changed out."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.intervention import Intervention, standing
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.recurrence.changes import Change, changes_of, changing, tell_left
from probe.hooks.recurrence.layer import kinds_of_layers, recurrent_layers
from probe.kernels.recurrence import Recurrence
from probe.kernels.windowed_recurrence import WindowedRecurrence
from probe.sample import Sample

ChangedPhase = Literal["both", "prefill", "decode"]


@dataclass(frozen=True, kw_only=True)
class ChangeOfRecurrences(Intervention):
    """An intervention on recurrent layers, in whole or where its fields say; for Mamba and Mamba-2 layers.

    A subclass is a frozen dataclass that gives `change`; where it acts, this class sees to. The model's cache carries
    the changed state, so that chunks and decoded tokens go on from it.
    """

    layers: Sequence[int] | None = None
    """Layers in which it acts, from 0; None for all that recur."""
    heads: Sequence[tuple[int, int]] | None = None
    """Pairs of layer and state head, from 0, on which it acts; None for all of the layers'. Mamba's layers have one."""
    phase: ChangedPhase = "both"
    """Whether it acts on the prompt (`prefill`), from the prompt's last token on (`decode`), or on both."""

    sees_every_phase: ClassVar[bool] = False
    """Whether `change` is asked in other phases too, to remember what it sees there."""

    def __post_init__(self) -> None:
        who = type(self).__name__
        if self.phase not in get_args(ChangedPhase):
            raise UsageError(f"{who}: phase is {self.phase!r}; expected {', '.join(get_args(ChangedPhase))}")
        try:
            layers = None if self.layers is None else tuple(sorted({int(layer) for layer in self.layers}))
            heads = None if self.heads is None else tuple(dict.fromkeys((int(i), int(j)) for i, j in self.heads))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{who}: layers are whole numbers, heads pairs of layer and head: {error}") from error
        if layers is not None and heads is not None:
            raise UsageError(f"{who}: layers and heads both say where it acts; give one of them")
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "heads", heads)

    @abstractmethod
    def change(self, model: PreTrainedModel) -> Change:
        """Look at the model, once, and return what is done to its recurrences.

        What comes back returns the very same recurrence where it changes nothing, another one with other gates,
        log-decays or factors of them, or one with a window; it never writes to a recurrence's tensors.
        """

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which `model`, wrapped or a bare transformers model, recurs so."""
        return self._applied(transformers_model_of(model))

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        _ = sample
        self._chosen(transformers_model_of(model))

    @contextmanager
    def _applied(self, model: PreTrainedModel) -> Iterator[None]:
        chosen = self._chosen(model)
        with standing(self, model):
            for before in changes_of(model):
                if isinstance(before, _changing) and before.asked.ends_in_a_window:
                    other = type(before.asked).__name__
                    raise UsageError(
                        f"{type(self).__name__} within {other}: a state of the last tokens alone is no recurrence that "
                        f"could be changed further; enter {other} last"
                    )
            with changing(model, _changing(self, self.change(model), chosen)):
                yield

    @property
    def ends_in_a_window(self) -> bool:
        """Whether nothing can change further what comes of it."""
        return False

    def _chosen(self, model: PreTrainedModel) -> dict[int, Bool[Tensor, "state_head"] | None]:
        """Return the layers in which it acts, and on which of their heads where not on all."""
        who, name, there = type(self).__name__, name_of(model), recurrent_layers(model)
        if not there:
            raise UsageError(f"{who}: no layer of {name} recurs in a known way; a recurrent model is needed")
        refused: dict[int, str] = {}
        for layer, each in there.items():
            module = each.module()
            assert module is not None
            if reason := each.family.why_unchangeable(module):
                refused[layer] = f"{type(each.family).__name__}: {reason}"
        usable = [layer for layer in there if layer not in refused]
        if not usable:
            raise UsageError(f"{who}: no layer of {name} can be changed ({next(iter(refused.values()))})")
        for layer in (*(self.layers or ()), *(layer for layer, _ in self.heads or ())):
            if layer in refused:
                raise UsageError(f"{who}: layer {layer} of {name} cannot be changed ({refused[layer]})")
            if layer not in there:
                kinds = kinds_of_layers(model)
                raise UsageError(f"{who}: layer {layer} of {name} does not recur; recurrent layers by kind: {kinds}")
        if self.heads is None:
            return dict.fromkeys(usable if self.layers is None else self.layers)
        chosen: dict[int, Bool[Tensor, "state_head"] | None] = {}
        for layer in sorted({layer for layer, _ in self.heads}):
            module = there[layer].module()
            heads = _num_heads(module)
            asked = [head for at, head in self.heads if at == layer]
            if wrong := [head for head in asked if not 0 <= head < heads]:
                raise UsageError(f"{who}: layer {layer} of {name} has {heads} state heads, and no head {wrong[0]}")
            chosen[layer] = torch.tensor([head in asked for head in range(heads)])
        return chosen


def _num_heads(module: Any) -> int:
    """Return how many states a Mamba mixer keeps: its decays are one a head, or a matrix for Mamba's one head."""
    rates: Tensor = module.A_log
    return 1 if rates.ndim == 2 else len(rates)


class _changing:
    """What one intervention does to the recurrences of the layers in which it acts."""

    def __init__(
        self, asked: ChangeOfRecurrences, change: Change, chosen: dict[int, Bool[Tensor, "state_head"] | None]
    ) -> None:
        self.asked, self.change, self.chosen = asked, change, chosen

    def __call__(self, sample: int, recurrence: Recurrence) -> Recurrence:
        acts = self.asked.phase in ("both", recurrence.phase)
        if recurrence.layer not in self.chosen or not (acts or self.asked.sees_every_phase):
            return recurrence
        changed = self.change(sample, recurrence)
        heads = self.chosen[recurrence.layer]
        if not acts or changed is recurrence:
            return recurrence
        return changed if heads is None else _of_heads(heads.to(changed.value.device), recurrence, changed)

    def left(self, sample: int, layer: int, stop: int, state: Float[Tensor, "state_head state channel"]) -> None:
        """See `Remembering`."""
        if layer in self.chosen:
            tell_left(self.change, sample, layer, stop, state)


def _of_heads(heads: Bool[Tensor, "state_head"], before: Recurrence, changed: Recurrence) -> Recurrence:
    """Return a recurrence of which some heads are as changed, the others as before."""
    if isinstance(changed, WindowedRecurrence):
        return dataclasses.replace(changed, heads=heads)
    factor = changed.log_factor
    if factor is not None:
        other = torch.zeros_like(factor[:, :1]) if before.log_factor is None else before.log_factor
        factor = torch.where(heads[:, None, None], factor, other)
    return dataclasses.replace(
        changed,
        gate=torch.where(heads[:, None], changed.gate, before.gate),
        log_decay=torch.where(heads[:, None, None], changed.log_decay, before.log_decay),
        log_factor=factor,
    )

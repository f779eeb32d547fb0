"""Interventions after which queries and keys stand turned as if the model's rotary positions were others."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.rotation import Rotation, rotations
from probe.hooks.attention.tap import site
from probe.hooks.attention.turner import Turner
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.loading.positions import positions
from probe.hooks.sequence.prompt_length import PromptLengths
from probe.kernels.call import Call
from probe.sample import Sample

_TURNERS = 8
"""Tables that are kept: for the samples of a batch, whose prompts have lengths of their own."""
_OF_ONE_BASE = 1e-2
"""How far frequencies may be from those of one base, as a share: a model put into bfloat16 has rounded them."""


@dataclass(frozen=True, kw_only=True)
class ChangeOfPositions(ChangeOfCalls):
    """A change of calls of a model with rotary positions; where there are none, `check` and entering say so."""

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"positions"})

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        self.change(transformers_model_of(model))


@dataclass(frozen=True, kw_only=True)
class RescaledPositions(ChangeOfPositions):
    """Other angles of all queries and keys alike, by a factor: a subclass says which."""

    training_length: int | None = None
    """Tokens that the model was trained for; None for what its card or configuration says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training_length is not None and self.training_length < 1:
            raise UsageError(f"{type(self).__name__}: training_length is at least 1, not {self.training_length}")

    @abstractmethod
    def turner(self, rotation: Rotation, factor: float, training_length: int | None) -> Turner:
        """Return what turns a layer's queries and keys; raises `UsageError` for frequencies that it cannot rescale."""

    @abstractmethod
    def wanted(self) -> tuple[str, float | Literal["auto", "dynamic"]]:
        """Return the name of the field that holds the factor, and the factor.

        `auto` is the prompt's length over the training length, `dynamic` the length so far, prompt or more, over it;
        never below 1.
        """

    def check_factor(self, field: str, factor: Any) -> None:
        """Raise `UsageError` for what is neither a number of at least 1 nor `auto`."""
        if factor != "auto" and (isinstance(factor, str | bool) or not factor >= 1):
            raise UsageError(f"{type(self).__name__}: {field} is a number, at least 1, or 'auto', not {factor!r}")

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        who, (field, wanted) = type(self).__name__, self.wanted()
        trained = self.training_length or trained_for(model)
        if trained is None and self.needs_training_length():
            raise UsageError(
                f"{who}: nothing says what length {name_of(model)} was trained for, on which {field}={wanted!r} "
                "depends; give training_length"
            )
        of_layer = rotations(model, trained or 1, who)
        for rotation in of_layer.values():
            # Frequencies that cannot be rescaled are refused before the run.
            self.turner(rotation, 2.0, trained)
        lengths, made = PromptLengths(), dict[tuple[int, float], Turner]()

        def change(here: site, sample: int, call: Call) -> Call:
            if call.layer not in of_layer:
                return call
            if isinstance(wanted, str):
                assert trained is not None
                length = lengths.of(here, sample, f"{who}: {field}")
                if wanted == "dynamic":
                    length = max(length, call.query_start + call.num_queries)
                factor = max(1.0, length / trained)
            else:
                factor = float(wanted)
            if factor == 1.0:
                return call
            kind = id(of_layer[call.layer]), factor
            if kind not in made:
                if len(made) >= _TURNERS:
                    del made[next(iter(made))]
                made[kind] = self.turner(of_layer[call.layer], factor, trained)
            turner = made[kind]
            query, key = turner(call.query, call.query_start), turner(call.key, call.key_start)
            return dataclasses.replace(call, query=query, key=key, log_sum_exp=None)

        return change

    def needs_training_length(self) -> bool:
        """Whether the training length is needed: here, where a factor is made of it."""
        return isinstance(self.wanted()[1], str)


def trained_for(model: PreTrainedModel) -> int | None:
    """Return how many tokens the model's card or configuration says it was trained for; None where neither does."""
    found = positions(model, 1)["training_length"]
    return None if found is None else int(found["tokens"])


def one_base(rotation: Rotation, who: str) -> float:
    """Return the base b of frequencies b^(−2d/D); `UsageError` in the name of `who` where they are none of one base.

    They are not where a model's positions are scaled already: what a change of the base would be is then not defined.
    """
    count = len(rotation.inverse_frequency)
    if count < 2:
        raise UsageError(f"{who}: where {count} pair of channels turns there is no base to change")
    base = math.exp(-math.log(float(rotation.inverse_frequency[-1])) * count / (count - 1))
    expected = [base ** (-d / count) for d in range(count)]
    found = rotation.inverse_frequency.tolist()
    off_by = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
    if rotation.attention_scaling != 1.0 or off_by > _OF_ONE_BASE:
        raise UsageError(
            f"{who}: the model's rotary positions are scaled already (its frequencies are not those of one base), and "
            "what this would make of them is not defined; load it without scaling, or use interpolate_positions"
        )
    return base


def refuse_packed(call: Call, who: str) -> None:
    """Raise `UsageError` in the name of `who` for packed documents, whose positions begin anew within a sequence."""
    if call.document is not None:
        raise UsageError(f"{who}: documents are packed into one sequence, and their positions are not those of one")

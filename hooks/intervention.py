"""What every intervention is: fields that say what is changed, and a block within which it is."""

from __future__ import annotations

import dataclasses
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from transformers import PreTrainedModel

from probe import discovery
from probe.errors import UsageError
from probe.sample import Sample


class Intervention(ABC):
    """A change to what a model computes: `with intervention(model):` makes it, and leaves the model bit-identical.

    An intervention is a frozen dataclass in a file of its own name. Interventions nest: each acts on what the ones
    entered before it have left. What is done to a prompt is done before it is read; then, layer by layer, what is done
    to queries, what is done to a call (its keys, values, logits), and what is done to the heads' outputs. Statistics
    captured in the block see calls as all interventions left them, whichever was entered first.
    """

    @property
    def sets(self) -> frozenset[str]:
        """What it decides alone where it acts: `positions` (where tokens seem to stand), `cache` (which keys are kept),
        `softcap`, `decay of states`, … Two that set the same thing in the same layers, heads, queries and phase
        contradict each other."""
        return frozenset()

    @abstractmethod
    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which `model`, wrapped or a bare transformers model, is changed."""

    def check(self, model: Any, sample: Sample) -> None:
        """Raise `UsageError`, naming the field, where it could do nothing to a sample that `model` is to read.

        A run asks before its first unit, of every sample and condition; nothing is entered.
        """
        _ = model, sample

    def check_beside(self, other: Intervention) -> None:
        """Raise `UsageError` naming both where this one and another set the same thing in the same place."""
        both = sorted(self.sets & other.sets)
        if both and _meet(self, other):
            names = f"{_shown(self)} and {_shown(other)}"
            raise UsageError(f"{names} contradict each other: both set {', '.join(both)}, in the same layers")

    def to_json(self) -> dict[str, Any]:
        """Return `{name: fields}` as JSON values; `from_json` turns it back into an equal intervention."""
        made: Any = self
        return {type(self).__name__: {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(made)}}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Intervention:
        """Rebuild an intervention from `{name: fields}`; raises `UsageError` naming what is unknown."""
        if len(value) != 1:
            raise UsageError(f"an intervention is one name with its fields, not {sorted(value)}")
        name, fields = next(iter(value.items()))
        kind = discovery.get("hooks", str(name))
        known = [f.name for f in dataclasses.fields(kind)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise UsageError(f"{name} has no field {', '.join(unknown)}; it has {', '.join(known)}")
        try:
            made = kind(**fields)
        except TypeError as error:
            raise UsageError(f"{name}: {error}") from error
        assert isinstance(made, Intervention)
        return made


_on: weakref.WeakKeyDictionary[PreTrainedModel, list[Intervention]] = weakref.WeakKeyDictionary()


@contextmanager
def standing(intervention: Intervention, model: PreTrainedModel) -> Iterator[None]:
    """Within the block the intervention counts as entered; raises `UsageError` where it contradicts one that is on."""
    there = _on.setdefault(model, [])
    for other in there:
        other.check_beside(intervention)
    there.append(intervention)
    try:
        yield
    finally:
        del there[max(i for i, each in enumerate(there) if each is intervention)]


def _meet(one: Intervention, other: Intervention) -> bool:
    """Return whether two act in the same place: in a layer, on a head, in a phase of reading."""
    if {getattr(each, "phase", "both") for each in (one, other)} == {"prefill", "decode"}:
        return False
    first, second = (getattr(each, "queries", None) for each in (one, other))
    if first is not None and second is not None and (first[1] <= second[0] or second[1] <= first[0]):
        return False
    heads = [getattr(each, "heads", None) for each in (one, other)]
    if heads[0] is not None and heads[1] is not None:
        return bool({*heads[0]} & {*heads[1]})
    layers = [_layers(each) for each in (one, other)]
    return layers[0] is None or layers[1] is None or bool(layers[0] & layers[1])


def _layers(intervention: Intervention) -> set[int] | None:
    """Return the layers in which it acts; None where it does not say, which is all."""
    layers, heads = (getattr(intervention, field, None) for field in ("layers", "heads"))
    if layers is not None:
        return {int(layer) for layer in layers}
    return None if heads is None else {int(layer) for layer, _ in heads}


def _shown(intervention: Intervention) -> str:
    name, fields = next(iter(intervention.to_json().items()))
    defaults = {f.name: _plain(f.default) for f in dataclasses.fields(intervention)}  # type: ignore[arg-type]
    said = ", ".join(f"{key} {value}" for key, value in fields.items() if defaults.get(key) != value)
    return f"{name} ({said})" if said else name


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value

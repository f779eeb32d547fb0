"""What every intervention is: fields that say what is changed, and a block within which it is."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

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

    @abstractmethod
    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which `model`, wrapped or a bare transformers model, is changed."""

    def check(self, model: Any, sample: Sample) -> None:
        """Raise `UsageError`, naming the field, where it could do nothing to a sample that `model` is to read.

        A run asks before its first unit, of every sample and condition; nothing is entered.
        """
        _ = model, sample

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


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value

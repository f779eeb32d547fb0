"""What every intervention is: fields that say what is changed, and a block within which it is."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from probe import discovery
from probe.errors import UsageError


class Intervention(ABC):
    """A change to what a model computes: `with intervention(model):` makes it, and leaves the model bit-identical.

    An intervention is a frozen dataclass in a file of its own name. Interventions nest: each acts on what the ones
    entered before it have left, on the queries before the attention product and on the heads' outputs after it.
    Statistics captured in the block see the queries as all interventions left them, whichever was entered first.
    """

    @abstractmethod
    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which `model`, wrapped or a bare transformers model, is changed."""

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

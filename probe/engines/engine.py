"""Who reads the units of a run, and how that is named."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from probe import discovery
from probe.engines.unit import Unit, UnitRead
from probe.errors import UsageError
from probe.kernels.engine import EngineName
from probe.limits import Limits
from probe.progress import Progress
from probe.storage.object_path import Location
from probe.storage.store import RunStore

if TYPE_CHECKING:
    from probe.engines.unit_reader import UnitReader
    from probe.hooks.models.huggingface import HuggingFaceModel

Read = Callable[[Sequence[Unit]], Generator[tuple[Unit, UnitRead], None, None]]
"""Reads units, and yields each with what came of it as soon as that is on record, in whatever order."""


@dataclass(frozen=True)
class Job:
    """What the units of one run have in common."""

    reader: UnitReader
    """Reads a unit with the model of this process."""
    store: RunStore
    """The run's folder, which this process holds."""
    folder: Location
    limits: Limits
    progress: Progress


class Engine(ABC):
    """Reads units: derive from it, a frozen dataclass in a file of the subclass's own name in `probe/engines`."""

    def check(self, model: HuggingFaceModel) -> None:
        """Raise UsageError or NotAvailable, before anything is written, where it cannot read with this model."""
        _ = model

    @abstractmethod
    def at_work(self, job: Job) -> AbstractContextManager[Read]:
        """Return the block within which units are read by it."""

    def to_json(self) -> dict[str, Any]:
        """Return `{name: fields}` as JSON values, for the run's record."""
        made: Any = self
        return {type(self).__name__: {f.name: getattr(self, f.name) for f in dataclasses.fields(made)}}


EngineChoice = str | Mapping[str, Mapping[str, Any]] | Engine
"""An engine: its name, `{name: {field: value}}`, or itself."""


def chosen_engine(choice: EngineChoice) -> Engine:
    """Return the engine that is meant.

    Raises UsageError for one that there is not, a field that it has not, and a name of what computes attention, which
    is another option.
    """
    if isinstance(choice, Engine):
        return choice
    if isinstance(choice, Mapping) and len(choice) != 1:
        raise UsageError(f"an engine is one name with its fields, not {sorted(choice)}")
    name, fields = (choice, {}) if isinstance(choice, str) else next(iter(choice.items()))
    if name in get_args(EngineName):
        raise UsageError(
            f"engine says who reads the units ({', '.join(discovery.names('engines'))}); for what computes statistics "
            f"of attention write scan={name!r}, or --scan {name}"
        )
    kind: Any = discovery.get("engines", name)
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted({*fields} - {*known}):
        raise UsageError(f"the engine {name} has no field {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    made: Engine = kind(**fields)
    return made

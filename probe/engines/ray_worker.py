"""One worker: a process with the model in it, which reads the units that it is given."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.engines.unit import Unit, UnitRead
from probe.errors import UsageError
from probe.plan import Played
from probe.reader import Reading
from probe.storage.handed_over import HandedOver, occupied_bytes


@dataclass(frozen=True)
class Task:
    """What a worker is told before its first unit."""

    folder: str
    """The run's folder, absolute."""
    posted: tuple[str, str]
    """What stands in it for as long as the run goes on."""
    opened: Mapping[str, Any]
    """How the model is opened."""
    identity: Mapping[str, str]
    """What the model must be, and what runs it."""
    provenance: Mapping[str, Any]
    """What the units say of it."""
    reading: Reading
    private: bool
    threads: int


class Worker:
    """Reads units in a process of its own."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._under: Played | None = None

    def come(self, task: Task) -> str:
        """Return who this is; raises UsageError where it does not see the run's folder."""
        self._task = task
        name = f"process {os.getpid()} on {socket.gethostname()}"
        try:
            self._store = HandedOver(Path(task.folder), task.posted)
        # Whatever the system says of the path, it is another folder than the run's.
        except Exception as error:
            raise UsageError(
                f"a worker ({name}) does not see the folder {task.folder} as it is here: give a folder with --out that "
                "every machine of the cluster shares"
            ) from error
        return name

    def open(self) -> dict[str, str]:
        """Open the model; return in what it differs from the one that the run is of, here and there."""
        import torch

        from probe import capture
        from probe.engines.unit_reader import UnitReader
        from probe.run_identity import model_identity

        torch.set_num_threads(self._task.threads)
        options = dict(self._task.opened)
        model = capture.load(options.pop("model"), **options)
        mine = model_identity(model.provenance())
        model.name = str(self._task.provenance["model"])
        self._reader = UnitReader(model, self._task.provenance, self._task.reading, self._task.private)
        keys = sorted({*mine, *self._task.identity})
        return {
            key: f"{mine.get(key)}, not {self._task.identity.get(key)}"
            for key in keys
            if mine.get(key) != self._task.identity.get(key)
        }

    def read(self, unit: Unit) -> UnitRead:
        """Read a unit and put it into its place in the run's folder; raises what ends a run."""
        if self._under != unit.condition:
            self._stack.close()
            self._under = None
            self._stack.enter_context(self._reader.under(unit.condition))
            self._under = unit.condition
        came = self._reader.read(unit, self._store)
        if came.record is None:
            return came
        return dataclasses.replace(came, num_bytes=occupied_bytes(self._store.folder / "trace.zarr" / unit.id))

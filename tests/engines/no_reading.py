"""A worker that is given units and does nothing with them: what is left is the handing out."""

from __future__ import annotations

from probe.engines.ray_worker import Worker
from probe.engines.unit import Unit, UnitRead


class NoReading(Worker):
    """Opens no model, reads no unit."""

    def open(self) -> dict[str, str]:
        """Open nothing."""
        return {}

    def read(self, unit: Unit) -> UnitRead:
        """Read nothing."""
        return UnitRead(None)

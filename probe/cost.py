"""What a run was predicted to take, and what it took: `cost.json` in its folder, no part of what the run is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from probe.errors import NotAvailable, StoreCorrupt
from probe.storage.durable import read_json, write_json
from probe.storage.manifest import check_format
from probe.storage.object_path import Location

FILE: Final = "cost.json"
"""Name of the file in a run's folder."""
FORMAT: Final = 1
"""Version of its form."""


@dataclass(frozen=True)
class Taken:
    """What a run takes, as it was predicted or measured; None for what is not known."""

    units: int | None = None
    seconds: float | None = None
    """From the opening of the model to the end of the report, all sessions together but for those that were killed."""
    peak_memory_bytes: int | None = None
    """Most resident memory of the process that plays."""
    peak_device_bytes: int | None = None
    """Most memory allocated on a GPU; None where there is none."""
    disk_bytes: int | None = None
    """Sizes of the files of the folder, added up."""


@dataclass(frozen=True)
class Cost:
    """What a run was predicted to take, and what it took so far."""

    predicted: Taken | None
    """None where the run was too small to predict."""
    actual: Taken

    def sentence(self) -> str:
        """Return both in one line: time, memory, disk."""
        took = f"took {shown(self.actual)}"
        return took if self.predicted is None else f"predicted {shown(self.predicted)}; {took}"


def shown(taken: Taken) -> str:
    """Return time, memory and disk as a person would write them; what is not known is left out."""
    said = [] if taken.seconds is None else [duration(taken.seconds)]
    if taken.peak_memory_bytes is not None:
        said.append(f"{size(taken.peak_memory_bytes)} of memory")
    if taken.peak_device_bytes is not None:
        said.append(f"{size(taken.peak_device_bytes)} on the GPU")
    if taken.disk_bytes is not None:
        said.append(f"{size(taken.disk_bytes)} of disk")
    return ", ".join(said)


def size(number: float) -> str:
    """Return a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit != "GB" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write_cost(folder: Location, cost: Cost) -> None:
    """Put what a run takes into its folder."""
    value = dataclasses.asdict(cost)
    if value["actual"]["seconds"] is not None:
        value["actual"]["seconds"] = round(value["actual"]["seconds"], 3)
    write_json(folder / FILE, {"format": FORMAT, **value})


def read_cost(folder: Location) -> Cost | None:
    """Return what a run takes; None where its folder does not say. Raises StoreCorrupt for what no run writes."""
    path = folder / FILE
    try:
        value = read_json(path)
    except NotAvailable:
        return None
    if not isinstance(value, dict):
        raise StoreCorrupt(f"{path} is not what a run writes there")
    check_format(value.get("format"), str(path), FORMAT)
    actual = _taken(value.get("actual"), path)
    predicted = None if value.get("predicted") is None else _taken(value["predicted"], path)
    return Cost(predicted, actual)


def _taken(value: Any, path: Location) -> Taken:
    known = {field.name for field in dataclasses.fields(Taken)}
    if not isinstance(value, Mapping) or not set(value) <= known:
        raise StoreCorrupt(f"{path} is not what a run writes there")
    for name, number in value.items():
        kinds = (int, float) if name == "seconds" else (int,)
        if number is not None and (type(number) not in kinds or not 0 <= number < 2**63):
            raise StoreCorrupt(f"{path}: {name} is not what a run writes there")
    return Taken(**value)

"""One unit of a run, and what came of reading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probe.plan import Played
from probe.sample import Sample


@dataclass(frozen=True)
class Unit:
    """One sample under one condition of a stage: read whole or not at all."""

    id: str
    """Its id, which is also the name of its folder."""
    place: tuple[int, int]
    """Number of its stage, and its own number within that: units are shown in this order, whoever reads them."""
    stage: str
    """Name of the stage."""
    condition: Played
    """What is done to the model or to the prompt."""
    sample: Sample
    """What is read, before interventions change it."""
    requests: tuple[Mapping[str, Any], ...]
    """Statistics to capture; none where behaviour alone is read."""


@dataclass(frozen=True)
class UnitRead:
    """What came of reading a unit."""

    record: Mapping[str, Any] | None
    """Its entry in the commit record; None where nothing was written."""
    failed: str | None = None
    """Why it failed, in words; None where it did not."""
    non_finite: str = ""
    """In words, in which heads a number was NaN or infinite; empty where none was."""
    seconds: float = 0.0
    """How long it took."""
    peak_bytes: int | None = None
    """Most memory while it was read (see `probe.reading_cost`); None where that was not measured."""
    num_bytes: int = 0
    """What it takes of the disk, where that was measured."""
    by: str = ""
    """What else a person may want to know who watches: how many read, and how fast."""

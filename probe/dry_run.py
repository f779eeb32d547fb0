"""What a run would take, asked as the run itself would be started."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from probe.casebook import Casebook
from probe.engines.engine import EngineChoice, chosen_engine
from probe.errors import UsageError
from probe.estimate import DryRun, estimate
from probe.kernels.engine import EngineName
from probe.playing import Player
from probe.prepare import default_folder, prepare
from probe.progress import Silent
from probe.reader import Reading
from probe.storage.object_path import Location, location


def dry_run(
    casebook: str | Path | Casebook = "first-look",
    *,
    out: str | Location | None = None,
    private: bool = False,
    scan: EngineName = "auto",
    engine: EngineChoice = "local",
    deterministic: bool = False,
    cache: Literal["device", "offload"] = "device",
    check: bool = True,
    **options: Any,
) -> DryRun:
    """Return what `run` with these options would take, reading no more of it than a few samples.

    Raises what `run` raises before it reads anything, and UsageError for a model on NDIF: the two would be sent.
    """
    began = time.perf_counter()
    reads = chosen_engine(engine)
    book, loaded = prepare(casebook, **options)
    reads.check(loaded)
    if loaded.is_remote:
        raise UsageError("an estimate reads samples, which would leave this machine: there is none for remote runs")
    folder = location(out) if out is not None else default_folder(book, loaded)
    reading = Reading(scan, deterministic, cache)
    player = Player(book, loaded, folder, Silent(), private=private, reading=reading)
    player.compare(check=check)
    player.check()
    return estimate(player, ready_seconds=time.perf_counter() - began)

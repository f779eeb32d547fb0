"""Play a casebook: read every unit that is not there yet, analyse what was read, write findings and report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from probe.casebook import Casebook, load
from probe.engines.engine import EngineChoice, chosen_engine
from probe.hooks.loading.lost_device import losses_named
from probe.kernels.engine import EngineName
from probe.limits import Limits
from probe.playing import Player
from probe.prepare import default_folder, prepare
from probe.progress import Progress, Silent
from probe.reader import Reading
from probe.storage import store
from probe.storage.object_path import Location, location
from probe.storage.trace_store import Run


def run(
    casebook: str | Path | Casebook = "first-look",
    *,
    model: Any = None,
    out: str | Location | None = None,
    lengths: tuple[int, ...] | None = None,
    depths: tuple[float, ...] | None = None,
    limit: int | None = None,
    seed: int | None = None,
    backend: str | None = None,
    remote: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    haystack: str | Path | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    device_map: str | int | Mapping[str, Any] | None = None,
    private: bool = False,
    scan: EngineName = "auto",
    engine: EngineChoice = "local",
    deterministic: bool = False,
    cache: Literal["device", "offload"] = "device",
    check: bool = True,
    command: str | None = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Run:
    """Play `casebook` on `model` and return the run, with its findings and its report on disk.

    `model` is a specimen's name, a hub id, a folder, or a model that `probe.load` gave or takes; `backend` and `remote`
    are as there, and with `remote` every prompt leaves this machine. `limit` is the number of samples per cell. With
    `private` the folder holds neither token ids nor text, and analyses that need them are not made, by name. At
    `limits` the run stops with StoppedByLimit, to be continued. `scan`, `deterministic`, `cache`, `check` are as in
    `probe.trace`. A folder that holds this very run is continued; one that holds another is refused unless `force`.
    Raises UsageError for what cannot be, NotAvailable and NotReproducible for a model that is not there or cannot be
    captured, RunFolderInUse for a folder that is taken, DeviceLost where a device computes no more.
    """
    began = time.perf_counter()
    reads = chosen_engine(engine)
    given = casebook if isinstance(casebook, Casebook) else load(casebook)
    book, loaded = prepare(
        given,
        model=model,
        lengths=lengths,
        depths=depths,
        limit=limit,
        seed=seed,
        backend=backend,
        remote=remote,
        device=device,
        dtype=dtype,
        haystack=haystack,
        trust_remote_code=trust_remote_code,
        device_map=device_map,
    )
    reads.check(loaded)
    folder = location(out) if out is not None else default_folder(book, loaded)
    reading = Reading(scan, deterministic, cache)
    player = Player(
        book,
        loaded,
        folder,
        progress or Silent(),
        command=command,
        private=private,
        reading=reading,
        engine=reads,
        given=given,
        limits=limits or Limits(),
        began=began,
    )
    with losses_named(loaded.hf):
        player.compare(check=check)
        player.check()
        player.costs.foresee(anew=player.judge(force=force))
        with store.hold(folder):
            player.claim(force=force)
            try:
                player.play()
            finally:
                player.progress.stop()
    return Run(folder)

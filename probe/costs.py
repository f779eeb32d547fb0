"""A run knows what it will take before it spends it, and says afterwards what it took."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from probe.cost import Cost, Taken, read_cost, size, write_cost
from probe.engines.local import local
from probe.engines.unit import UnitRead
from probe.errors import NoRoom
from probe.limits import folder_bytes
from probe.reading_cost import resident_peak
from probe.stage import MatchedControl
from probe.storage.object_path import Location, ObjectPath

if TYPE_CHECKING:
    from probe.estimate import DryRun
    from probe.playing import Player

WORTH_TOKENS: Final = 200_000
"""Tokens of all prompts together from which on a run reads a few of them to know what it will take."""
LONG: Final = 4096
"""Tokens of one prompt from which on it does so however few there are."""


@dataclass
class Costs:
    """What one run takes: predicted before its first unit, and counted while it is played."""

    player: Player
    began: float
    """When the run began, by `time.perf_counter`."""
    predicted: Taken | None = None
    _past: Taken = field(default_factory=Taken)
    _peak: int = 0
    _device_peak: int | None = None

    def foresee(self, *, anew: bool) -> None:
        """Predict what the run takes, and hold it against the room that there is; nothing is written before.

        With `anew` what the folder holds is replaced. Raises NoRoom where the disk will not suffice for what is surely
        read and no budget ends the run before.
        """
        player = self.player
        before = None if anew else read_cost(player.folder)
        if before is not None:
            self._past = before.actual
        if before is not None and before.predicted is not None:
            self.predicted = before.predicted
        elif not player.model.is_remote and self._is_worth_it():
            from probe.estimate import estimate

            self._check_room(found := estimate(player, ready_seconds=time.perf_counter() - self.began, thorough=False))
            # Who reads elsewhere takes other memory, and less time.
            here = isinstance(player.engine, local)
            self.predicted = Taken(
                found.units,
                found.seconds if here else None,
                found.peak_memory_bytes if here else None,
                found.peak_device_bytes if here else None,
                found.disk_bytes,
            )
        budget = player.limits.max_bytes
        if self.predicted is not None and budget is not None and budget < (needs := self.predicted.disk_bytes or 0):
            player.progress.message(f"the run takes about {size(needs)} of disk; it will stop at {size(budget)}")

    def _is_worth_it(self) -> bool:
        """Return whether so much is read that a few readings more make no difference."""
        total = longest = 0
        for stage in self.player.book.stages:
            for condition in stage.conditions.values():
                draws = condition.intervention.draws if isinstance(condition.intervention, MatchedControl) else 1
                made = self.player.made(condition.workload)
                lengths = [len(s) for s in made if stage.half in ("both", s.facts["half"])]
                total, longest = total + draws * sum(lengths), max([longest, *lengths])
        return total >= WORTH_TOKENS or longest >= LONG

    def _check_room(self, found: DryRun) -> None:
        free = free_bytes(self.player.folder)
        there = folder_bytes(self.player.folder)
        budget = self.player.limits.max_bytes
        if free is None or (budget is not None and budget <= free + there):
            return
        surely = found.disk_bytes - sum(stage.disk_bytes for stage in found.stages if stage.at_most)
        if surely - there > free:
            raise NoRoom(
                f"the run needs about {size(surely - there)} of disk, and {self.player.folder} has {size(free)} free; "
                "nothing was written. Read less (--limit, --lengths, fewer statistics in `capture`), give another "
                "folder with --out, or a --budget at which the run stops cleanly"
            )
        if found.disk_bytes - there > free:
            self.player.progress.message(
                f"the run takes up to {size(found.disk_bytes - there)} of disk, of which {size(free)} are free"
            )

    def add(self, came: UnitRead) -> None:
        """Count what reading a unit took."""
        peak = came.peak_bytes or 0
        if self.player.model.device.type == "cuda":
            self._device_peak = max(self._device_peak or 0, peak)
        else:
            self._peak = max(self._peak, peak)

    def note(self) -> None:
        """Count the memory that was held since the last unit, which the next one forgets."""
        self._peak = max(self._peak, resident_peak())

    def write(self) -> None:
        """Put what was predicted, and what was taken so far, into the run's folder."""
        self.note()
        folder, past = self.player.folder, self._past
        actual = Taken(
            len(self.player.store.committed()),
            (past.seconds or 0.0) + time.perf_counter() - self.began,
            max(past.peak_memory_bytes or 0, self._peak),
            None if self._device_peak is None else max(past.peak_device_bytes or 0, self._device_peak),
            folder_bytes(folder),
        )
        write_cost(folder, Cost(self.predicted, actual))


def free_bytes(folder: Location) -> int | None:
    """Return the room on the disk of a folder, which need not be there yet; None where nothing is known of it."""
    if isinstance(folder, ObjectPath):
        return None
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None

"""The workers of a run: who is there, what each reads, and what becomes of the unit of one that dies."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import queue
import shutil
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from probe.engines.engine import Job
from probe.engines.ray_worker import Task, Worker
from probe.engines.unit import Unit, UnitRead
from probe.errors import DeviceLost, NotAvailable, StoppedByLimit, UsageError
from probe.run_identity import model_identity
from probe.storage.handed_over import posted, remove_attempts

if TYPE_CHECKING:
    from probe.engines.ray import ray as RayEngine

MOST_DEATHS: Final = 3
"""Workers that may die over one unit, or one after the other before their first."""
SHORT_SECONDS: Final = 2.0
"""A worker whose units are read faster than this has the next one waiting."""
PATIENCE_SECONDS: Final = 30.0
"""After so long without a worker a person is told what the cluster has."""
_WAIT_SECONDS: Final = 0.5
"""How long to listen to the workers before limits and signals have their turn."""


@dataclasses.dataclass(eq=False)
class _Hand:
    """One worker, and what it was asked, in that order."""

    actor: Any
    asked: deque[tuple[Future[Any], Unit | None]] = dataclasses.field(default_factory=deque)
    """What it has not answered yet: the answer to come, and the unit that it is of; none where it makes ready."""
    name: str = "not there yet"
    ready: bool = False

    @property
    def units(self) -> list[Unit]:
        """The units that it has, the one that it reads first."""
        return [unit for _, unit in self.asked if unit is not None]


class Crew:
    """Workers of a Ray cluster, from the first unit on until the block ends."""

    def __init__(self, engine: RayEngine, job: Job) -> None:
        self._engine, self._job = engine, job
        if not isinstance(job.folder, Path):
            raise UsageError(f"{job.folder}: Ray's workers write into a folder that they share; give one with --out")
        self._folder = job.folder
        self._stack = contextlib.ExitStack()
        self._hands: list[_Hand] = []
        self._most = 0
        self._pending: deque[Unit] = deque()
        self._deaths: Counter[str] = Counter()
        self._deaths_before_ready = 0
        self._seconds: list[float] = []
        self._bytes_per_token: dict[bool, float] = {}
        self._stopped: StoppedByLimit | None = None
        self._told: set[str] = set()
        self._began = time.monotonic()
        self._first = 0.0
        self._num_read = 0
        self._begun = False
        self._answers: queue.SimpleQueue[_Hand] = queue.SimpleQueue()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            for hand in self._hands:
                self._dismiss(hand)
        finally:
            self._hands.clear()
            self._stack.close()
            remove_attempts(self._folder)

    def read(self, units: Sequence[Unit]) -> Generator[tuple[Unit, UnitRead], None, None]:
        """Read units; yield each with what came of it as soon as it is on record. Raises what ends a run."""
        if not units:
            return
        self._pending.extend(units)
        self._enlist(len(units))
        self._began, self._first, self._num_read = time.monotonic(), 0.0, 0
        while self._pending or any(hand.units for hand in self._hands):
            self._hand_out()
            hand = self._heard()
            while hand is not None and hand in self._hands and hand.asked and hand.asked[0][0].done():
                yield from self._listen(hand)
        if self._stopped is not None:
            raise self._stopped

    def _enlist(self, num_units: int) -> None:
        """Have as many workers as there is room and work for."""
        engine, model = self._engine, self._job.reader.model
        if not self._most:
            # On the main thread, and with the folder ours: workers write into it from now on.
            self._job.store.make_ready()
            from probe.engines.ray_cluster import cluster

            gpus = engine.gpus_for(model)
            joined = cluster(engine.address, engine.workers, engine.cpus_per_worker, gpus)
            self._most = self._stack.enter_context(joined)
            token = self._stack.enter_context(posted(self._folder))
            self._task = Task(
                str(self._folder.resolve()),
                token,
                _opened(model),
                model_identity(self._job.reader.provenance),
                self._job.reader.provenance,
                self._job.reader.reading,
                self._job.reader.private,
                engine.cpus_per_worker,
            )
        for _ in range(min(self._most, num_units) - len(self._hands)):
            self._hands.append(self._enlisted())
        cpus = f"{engine.cpus_per_worker} CPU{'s' if engine.cpus_per_worker > 1 else ''}"
        self._say("enlisted", f"ray: {len(self._hands)} workers of {cpus} each")

    def _enlisted(self) -> _Hand:
        import ray

        options: dict[str, Any] = {"num_cpus": self._engine.cpus_per_worker, "max_restarts": 0, "max_task_retries": 0}
        if gpus := self._engine.gpus_for(self._job.reader.model):
            options["num_gpus"] = gpus
        hand = _Hand(ray.remote(Worker).options(**options).remote())
        self._ask(hand, hand.actor.come.remote(self._task))
        return hand

    def _ask(self, hand: _Hand, answer: Any, unit: Unit | None = None) -> None:
        # A callback and a queue: Ray's own waiting makes every signal one of Ctrl-C, and its cost grows with what is
        # waited for.
        future = answer.future()
        hand.asked.append((future, unit))
        future.add_done_callback(lambda _: self._answers.put(hand))

    def _hand_out(self) -> None:
        """Give every worker that is there what it should have, first each one unit, then each the next."""
        self._begun = self._begun or all(hand.ready for hand in self._hands) or self._waited()
        if not self._begun:
            # Whether all of them see the folder, and have the model, is known before the first unit.
            return
        for depth in range(1, self._depth() + 1):
            for hand in self._hands:
                if hand.ready and len(hand.units) < depth and self._pending and self._may_begin(self._pending[0]):
                    unit = self._pending.popleft()
                    self._first = self._first or time.monotonic()
                    self._ask(hand, hand.actor.read.remote(unit), unit)

    def _waited(self) -> bool:
        return time.monotonic() - self._began > PATIENCE_SECONDS

    def _depth(self) -> int:
        return 2 if self._seconds and sum(self._seconds) / len(self._seconds) < SHORT_SECONDS else 1

    def _may_begin(self, unit: Unit) -> bool:
        try:
            self._job.limits.check(self._folder)
        except StoppedByLimit as limit:
            # What is being read is read to its end.
            self._stopped = limit
            self._pending.clear()
            return False
        being_read = [each for hand in self._hands for each in hand.units]
        needed = sum(map(self._needs, [*being_read, unit]))
        free = shutil.disk_usage(self._folder).free
        if needed < free:
            return True
        said = f"{free / 1e9:.3g} GB are free, and what is being read may take {needed / 1e9:.3g} GB"
        if not being_read:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {said}", str(self._folder))
        self._say("disk", f"{said}: no more units are begun until there is room")
        return False

    def _needs(self, unit: Unit) -> float:
        return self._bytes_per_token.get(bool(unit.requests), 0.0) * len(unit.sample)

    def _heard(self) -> _Hand | None:
        """Return a worker that has answered; None where there is none for a while."""
        import ray

        with contextlib.suppress(queue.Empty):
            return self._answers.get(timeout=_WAIT_SECONDS)
        if self._waited() and not any(hand.ready for hand in self._hands):
            there, free = ray.cluster_resources(), ray.available_resources()
            shown = ", ".join(f"{free.get(key, 0):g} of {there.get(key, 0):g} {key}s" for key in ("CPU", "GPU"))
            self._say("waiting", f"ray: no worker is ready yet; of the cluster are free {shown}")
        return None

    def _listen(self, hand: _Hand) -> Generator[tuple[Unit, UnitRead], None, None]:
        import ray

        future, unit = hand.asked[0]
        try:
            answer = future.result()
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DeviceLost):
                # Its own device alone: elsewhere the others go on.
                yield from self._lost(hand, error.cause)
                return
            raise error.cause from error
        except ray.exceptions.RayError as error:
            yield from self._lost(hand, error)
            return
        hand.asked.popleft()
        if unit is None:
            self._admit(hand, answer)
            return
        self._deaths_before_ready = 0
        if answer.record is not None:
            self._job.store.adopt(answer.record)
            each = answer.num_bytes / max(len(unit.sample), 1)
            captured = bool(unit.requests)
            self._bytes_per_token[captured] = max(self._bytes_per_token.get(captured, 0.0), each)
            self._seconds = [*self._seconds[-15:], answer.seconds]
        yield unit, self._told_by(answer)

    def _admit(self, hand: _Hand, answer: Any) -> None:
        """Take note of a worker that has come, then of one that has opened the model."""
        if isinstance(answer, str):
            hand.name = answer
            self._ask(hand, hand.actor.open.remote())
            return
        if answer:
            differs = "; ".join(f"{key} {what}" for key, what in answer.items())
            raise UsageError(
                f"a worker ({hand.name}) has another model, or other software, than this process: {differs}"
            )
        hand.ready, self._deaths_before_ready = True, 0

    def _lost(self, hand: _Hand, error: Exception) -> Generator[tuple[Unit, UnitRead], None, None]:
        """Put another worker in the place of one that died, and what it had back to the units to be read."""
        units = hand.units
        self._dismiss(hand)
        self._hands.remove(hand)
        if not units and not hand.ready:
            self._deaths_before_ready += 1
            if self._deaths_before_ready >= MOST_DEATHS:
                raise NotAvailable(f"{MOST_DEATHS} workers died before they had opened the model: {_why(error)}")
        for unit in reversed(units):
            remove_attempts(self._folder, unit.id)
            if self._stopped is None:
                self._pending.appendleft(unit)
        if units:
            self._deaths[units[0].id] += 1
            self._job.progress.message(
                f"ray: a worker died ({hand.name}) while it read {units[0].condition.name} {units[0].sample.name}"
            )
            if self._deaths[units[0].id] >= MOST_DEATHS and self._stopped is None:
                unit = self._pending.popleft()
                yield (
                    unit,
                    self._told_by(UnitRead(None, f"{MOST_DEATHS} workers died while they read it: {_why(error)}")),
                )
        if self._pending or any(each.units for each in self._hands):
            self._hands.append(self._enlisted())

    def _told_by(self, came: UnitRead) -> UnitRead:
        self._num_read += 1
        rate = self._num_read / max(time.monotonic() - self._first, 1e-9)
        ready = sum(hand.ready for hand in self._hands)
        return dataclasses.replace(came, by=f"{ready} of {len(self._hands)} workers, {rate:.3g} units/s")

    def _dismiss(self, hand: _Hand) -> None:
        import ray

        # One that is dead already, or of a cluster that is gone.
        with contextlib.suppress(ray.exceptions.RayError, RuntimeError):
            ray.kill(hand.actor, no_restart=True)

    def _say(self, about: str, text: str) -> None:
        """Say something once."""
        if about not in self._told:
            self._told.add(about)
            self._job.progress.message(text)


def _opened(model: Any) -> dict[str, Any]:
    """Return how a worker opens the model: from wherever it was started, on the GPU that Ray gives it."""
    from probe.specimens import folders

    options = dict(model.opened)
    name = options["model"]
    if name not in folders() and Path(name).is_dir():
        options["model"] = str(Path(name).resolve())
    if options.get("device_map") is None:
        options["device"] = "cuda" if model.device.type == "cuda" else str(model.device)
    return options


def _why(error: Exception) -> str:
    """Return what Ray says of a worker's end, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error:" in line or "exit" in line.lower() or "memory" in line.lower()]
    return (telling or lines or [type(error).__name__])[-1][:300]

"""One process with one model, what it was asked, and what came of it: the explorer asks, and goes on at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import probe
from probe.errors import ProbeError, UsageError
from probe.storage.commits import Commits
from probe.storage.unit_files import is_unit, remove_unit
from probe.visible import visible
from probe.what_if import WhatIf

NAME: Final = "what-if"
"""What the run of what was typed is called."""
MOST_WAITING: Final = 4
"""Requests that wait for the one that is being read, at most."""
MOST_KEPT: Final = 8
"""Results that are shown, the last ones."""

PATIENCE_SECONDS: Final = 5.0
"""How long a process that says nothing more has to end by itself, to be asked how it ended."""

_LAST_WORDS: Final = 2000

State = Literal["waiting", "loading", "reading", "done", "refused", "stopped"]


@dataclass
class Job:
    """One request and how far it has come."""

    number: int
    asked: WhatIf
    sample: str
    """What its sample is called."""
    state: State = "waiting"
    words: str = ""
    """Why it was refused."""
    condition: str = ""
    """Under which condition it is being read."""
    tokens: tuple[int, int] = (0, 0)
    """Tokens read so far, and tokens that there are."""
    readings: list[Mapping[str, Any]] = field(default_factory=list)
    """What came of each condition: `unit`, `condition`, `response`, `answer_loss`, `text_loss`, …"""
    difference: Mapping[str, Any] | None = None
    """The second reading less the first."""


@dataclass(frozen=True)
class Look:
    """How things stand at one moment."""

    running: Job | None
    waiting: int
    finished: tuple[Job, ...]
    """The last results, the newest first."""
    memory: int | None
    """The most bytes that the process held so far; None where there is none."""

    @property
    def busy(self) -> bool:
        """Whether something is being read or waits."""
        return self.running is not None or self.waiting > 0


class Live:
    """A model in a process of its own, which is started by the first request and ends with `close`."""

    def __init__(self, model: str, options: Mapping[str, Any] | None = None) -> None:
        """Make the folder for what will be read; `options` are those of `probe.load`, as JSON values."""
        self.model = model
        """The model's name; nothing that is typed can name another."""
        self.options = dict(options or {})
        self.room = Path(tempfile.mkdtemp(prefix="probe-what-if-"))
        """A temporary folder, removed by `close`."""
        self._change = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._finished: deque[Job] = deque(maxlen=MOST_KEPT)
        self._process: subprocess.Popen[str] | None = None
        self._memory: int | None = None
        self._samples: dict[tuple[Any, ...], str] = {}
        self._count = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="what-if", daemon=True)
        self._thread.start()

    @property
    def folder(self) -> Path:
        """The run folder of what was read; there is none before the first request is."""
        return self.room / NAME

    @property
    def has_units(self) -> bool:
        """Whether anything was read yet."""
        return (self.folder / "run.json").exists() and (self.folder / "commits.jsonl").exists()

    def ask(self, asked: WhatIf) -> Job:
        """Take a request, to be read when its turn comes; raises UsageError where too many wait already."""
        with self._change:
            if self._closed:
                raise UsageError("the explorer is ending")
            if len(self._waiting) >= MOST_WAITING:
                raise UsageError(f"{MOST_WAITING} requests wait already, and no more can; wait, or stop them")
            self._count += 1
            # The same prompt kept in the same detail is the same sample, so that conditions can be paired.
            kept = (asked.prompt, asked.answer, asked.num_new_tokens, asked.layers)
            sample = self._samples.setdefault(kept, f"prompt-{len(self._samples) + 1}")
            job = Job(self._count, asked, sample)
            self._waiting.append(job)
            self._change.notify_all()
            return dataclasses.replace(job)

    def look(self) -> Look:
        """Return how things stand."""
        with self._change:
            running = None if self._running is None else dataclasses.replace(self._running)
            finished = tuple(dataclasses.replace(job) for job in reversed(self._finished))
            return Look(running, len(self._waiting), finished, self._memory)

    def settled(self, timeout: float | None = None) -> Look:
        """Wait until nothing is read and nothing waits, `timeout` seconds at most, and return how things stand."""
        with self._change:
            self._change.wait_for(lambda: self._running is None and not self._waiting, timeout)
        return self.look()

    def stop(self) -> None:
        """End what is being read and what waits: the process is killed, and the next request loads the model anew."""
        with self._change:
            stopped = [*([self._running] if self._running else []), *self._waiting]
            if not stopped:
                return
            self._waiting.clear()
            for job in stopped:
                self._end(job, "stopped")
            # Whoever hears the process sees by this that it is no longer the one.
            process, self._process, self._memory = self._process, None, None
        if process is not None:
            _kill(process)

    def close(self) -> None:
        """End the process and remove what was read. Nothing of it is left."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self.stop()
        self._thread.join()
        if self._process is not None:
            self._forget(self._process)
        shutil.rmtree(self.room, ignore_errors=True)

    def _end(self, job: Job, state: State, words: str = "") -> None:
        job.state, job.words = state, words
        self._finished.append(job)
        if self._running is job:
            self._running = None
        self._change.notify_all()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            process = self._started(job)
            if process is None:
                continue
            words = ""
            try:
                for event in self._events(process, job):
                    if self._hear(job, event):
                        break
                else:
                    words = self._last_words(process)
            # A process that has ended hears no more; one that says something else than it should is ended.
            except (OSError, ValueError, KeyError, TypeError) as error:
                words = f"{type(error).__name__}: {error}; {self._last_words(process)}"
            with self._change:
                if self._running is job:
                    self._end(job, "refused", words)
                if words and self._process is process:
                    self._process = self._memory = None
                ended = self._process is not process
            if ended:
                self._forget(process)

    def _next(self) -> Job | None:
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            self._running = self._waiting.popleft()
            return self._running

    def _started(self, job: Job) -> subprocess.Popen[str] | None:
        """Return the process, started where there is none; None where the job was stopped meanwhile."""
        with self._change:
            if self._running is not job:
                return None
            if self._process is not None and self._process.poll() is None:
                return self._process
            if self._process is not None:
                self._forget(self._process)
            job.state = "loading"
            try:
                self._process = self._spawned()
            except OSError as error:
                self._end(job, "refused", f"no process could be started for the model: {error}")
                self._process = None
            self._change.notify_all()
            return self._process

    def _forget(self, process: subprocess.Popen[str]) -> None:
        """Make sure that a process is gone, and remove what it had half written."""
        _kill(process)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        units = self.folder / "trace.zarr"
        with contextlib.suppress(OSError, ProbeError):
            committed = Commits(self.folder / "commits.jsonl").units
            for unit in units.iterdir() if units.is_dir() else ():
                if is_unit(unit) and unit.name not in committed:
                    remove_unit(unit)

    def _spawned(self) -> subprocess.Popen[str]:
        place = str(Path(probe.__file__).parent.parent)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")])),
            # A model is not fetched because somebody typed a prompt, nor because a record that somebody sent names it.
            "HF_HUB_OFFLINE": "1",
            # Known to the process from its first moment, so that it can remove it whenever the explorer ends.
            "PROBE_LIVE_ROOM": str(self.room),
        }
        with (self.room / "said").open("w", encoding="utf-8") as errors:
            return subprocess.Popen(
                _command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env=environment,
                start_new_session=True,
            )

    def _events(self, process: subprocess.Popen[str], job: Job) -> Iterator[Mapping[str, Any]]:
        assert process.stdin is not None
        assert process.stdout is not None
        if job.state == "loading":
            first = {"model": self.model, "options": self.options}
            process.stdin.write(f"{json.dumps(first)}\n")
        request = {"number": job.number, "sample": job.sample, "what_if": job.asked.to_json()}
        process.stdin.write(f"{json.dumps(request)}\n")
        process.stdin.flush()
        for line in process.stdout:
            yield json.loads(line)

    def _hear(self, job: Job, event: Mapping[str, Any]) -> bool:
        """Take in what the process says; returns whether it is done with the job."""
        with self._change:
            if self._running is not job:
                return True
            if event.get("memory") is not None:
                self._memory = int(event["memory"])
            kind = event.get("event")
            if kind == "ready":
                job.state = "reading"
                self._change.notify_all()
            elif kind == "unavailable":
                self._end(job, "refused", f"the model {self.model!r} cannot be loaded here: {event['words']}")
                # Those that wait would hear the same.
                while self._waiting:
                    waiting = self._waiting.popleft()
                    self._end(waiting, "refused", job.words)
                self._process = self._memory = None
            elif event.get("number") != job.number:
                return False
            elif kind == "reading":
                job.state = "reading"
                job.condition, job.tokens = str(event["condition"]), (int(event["done"]), int(event["total"]))
                self._change.notify_all()
            elif kind == "refused":
                self._end(job, "refused", str(event["words"]))
            elif kind == "done":
                job.readings, job.difference = event["readings"], event["difference"]
                self._end(job, "done")
            return self._running is not job

    def _last_words(self, process: subprocess.Popen[str]) -> str:
        """Return in words how a process ended that nobody stopped."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=PATIENCE_SECONDS)
        code = process.returncode
        if code in (-9, 137):
            return "the process of the model was ended by the system, as it is when memory runs out"
        said = ""
        with contextlib.suppress(OSError):
            said = visible((self.room / "said").read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:].strip())
        return f"the process of the model ended by itself (exit {code}): {said.splitlines()[-1] if said else ''}"


def _command() -> list[str]:
    # Without -P a folder called probe where the user stands would come first. What is asked goes in by the pipe.
    return [sys.executable, "-P", "-m", "probe.live.worker"]


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a process with all that it started, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        if os.name == "posix" and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()

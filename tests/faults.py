"""Plays a small run with one of its writes spoilt, or killed at a moment; `python -m tests.faults` serves.

A process of its own forks a child for each run, so that nothing of Python's own cleans up behind a kill, and nothing of
a test's threads is held in the child. A write is a file that is opened to be written, a rename, or bytes forced to the
disk. It reads one JSON object a line and answers with one (see `Played`); `served` is its other end.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

BOOK = """
format: 1
name: small
question: Does it go on?
model: needle
workload: {needle: {lengths: [64], depths: [0.0, 1.0], samples: 2}}
stages:
  - name: read
    conditions:
      baseline: {role: baseline, capture: true}
    capture: [entropy]
    analyses:
      - retrieval_heads: {half: find}
  - name: ablate
    half: test
    conditions:
      removed: {role: treatment, intervention: {from_finding: retrieval_heads}}
    analyses:
      - compare_conditions: {half: test}
"""


@dataclass(frozen=True)
class Played:
    """What became of one run."""

    code: int
    """0, 1 for an error of the disk, 2 for another, 128 + the signal that ended it."""
    seconds: float
    writes: int = 0
    """Writes to its folder; 0 for a run that was killed, which cannot say."""
    opened: list[int] = field(default_factory=list)
    """Which of the writes open a file to be written; only these can be torn."""
    begun: list[str] = field(default_factory=list)
    """Units that were begun, in their order."""


Play = Callable[..., Played]
"""`play(out, kind="", at=-1, after=None)`: the n-th write killed, failed or torn, or a kill after so many seconds."""


class Faults:
    """Counts the writes below a folder, and spoils the n-th."""

    def __init__(self, below: Path, kind: str = "", at: int = -1) -> None:
        self.below, self.kind, self.at, self.count, self.opened = str(below), kind, at, 0, list[int]()

    def install(self) -> None:
        """Put the shim in the place of the calls that every writer of ours goes through."""
        opened, replaced, synced = io.open, os.replace, os.fsync
        faults = self

        def open_(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if any(letter in mode for letter in "wax+") and str(file).startswith(faults.below):
                faults.opened.append(faults.count + 1)
                faults.step(lambda: _torn(opened, file))
            return opened(file, mode, *rest, **options)

        def replace(source: Any, target: Any, **options: Any) -> None:
            if str(target).startswith(faults.below):
                faults.step(lambda: None)
            replaced(source, target, **options)

        def fsync(descriptor: int) -> None:
            faults.step(lambda: None)
            synced(descriptor)

        io.open = open_  # type: ignore[assignment]
        os.replace = os.rename = replace  # type: ignore[assignment]
        os.fsync = fsync

    def step(self, tear: Callable[[], None]) -> None:
        """Count a write; at the one that is to be spoilt, spoil it."""
        self.count += 1
        if self.count != self.at:
            return
        if self.kind == "fail":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.kind == "tear":
            tear()
        os.kill(os.getpid(), signal.SIGKILL)


def play(model: Any, out: Path) -> None:
    """Play the casebook into a folder; its file stands beside it."""
    import probe

    book = out.parent / "small.yaml"
    if not book.exists():
        book.write_text(BOOK, encoding="utf-8")
    probe.run(book, model=model, out=out, check=False)


@contextlib.contextmanager
def served() -> Iterator[Play]:
    """Start the process that plays, for the length of a block."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        ask, told = server.stdin, server.stdout
        assert ask is not None
        assert told is not None

        def play(out: Path, kind: str = "", at: int = -1, after: float | None = None) -> Played:
            ask.write(json.dumps({"out": str(out), "kind": kind, "at": at, "after": after}) + "\n")
            ask.flush()
            return Played(**json.loads(told.readline()))

        yield play
        ask.close()


def serve() -> None:
    """Answer requests until there are no more."""
    import torch

    import probe

    torch.set_num_threads(1)
    model = probe.load("needle")
    _bring_in(model)
    for line in sys.stdin:
        asked = json.loads(line)
        played = _forked(model, Path(asked["out"]), asked["kind"], asked["at"], asked["after"])
        print(json.dumps(asdict(played)), flush=True)


def _bring_in(model: Any) -> None:
    """Import what a run imports, of which it starts nothing: else every child would, for seconds.

    A child plays and says what it has imported. What runs in threads when it is used (zarr, the pool that syncs) was
    not used here, so that no child is forked beside them.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "names"
        child = os.fork()
        if child == 0:
            try:
                play(model, Path(folder) / "run")
                names.write_text("\n".join(sys.modules), encoding="utf-8")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        for name in names.read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def _forked(model: Any, out: Path, kind: str, at: int, after: float | None) -> Played:
    """Play in a child, and say how it ended; where it has not `after` so many seconds, end it."""
    begun = out.parent / "begun"
    begun.unlink(missing_ok=True)
    ears, mouth = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(ears)
        code = 2
        faults = Faults(out, kind, at)
        try:
            # Beside the run, and no write of it.
            (out.parent / "small.yaml").write_text(BOOK, encoding="utf-8")
            _note_begun(begun)
            faults.install()
            play(model, out)
            code = 0
        except OSError:
            code = 1
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        os.write(mouth, json.dumps({"writes": faults.count, "opened": faults.opened}).encode())
        os._exit(code)
    os.close(mouth)
    if after is not None and not select.select([ears], [], [], after)[0]:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(ears) as told:
        counted = json.loads(told.read() or "{}")
    _, status = os.waitpid(child, 0)
    units = begun.read_text(encoding="utf-8").split() if begun.exists() else []
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return Played(code, time.monotonic() - started, **counted, begun=units)


def _note_begun(path: Path) -> None:
    """Have each unit that is begun written down, in a way that a kill leaves."""
    from probe.storage.store import RunStore

    begin = RunStore.begin_unit

    def begin_unit(store: Any, unit: str, **about: Any) -> Any:
        note = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(note, f"{unit}\n".encode())
        os.close(note)
        return begin(store, unit, **about)

    RunStore.begin_unit = begin_unit  # type: ignore[method-assign]


def _torn(opened: Any, file: Any) -> None:
    with opened(file, "wb") as part:
        part.write(b'{"half": ')
        part.flush()


if __name__ == "__main__":
    serve()

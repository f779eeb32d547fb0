"""Plays a small run with one of its writes spoilt: killed, failed, or torn and killed; `python -m tests.faults` serves.

A process of its own forks a child for each run, so that nothing of Python's own cleans up behind a kill, and nothing of
a test's threads is held in the child. A write is a file that is opened to be written, a rename, or bytes forced to the
disk. It reads one JSON object a line (`out`, `kind`, `at`) and answers with one (`code`, `count` of writes).
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


class Faults:
    """Counts the writes below a folder, and spoils the n-th."""

    def __init__(self, below: Path, kind: str = "", at: int = -1) -> None:
        self.below, self.kind, self.at, self.count = str(below), kind, at, 0

    def install(self) -> None:
        """Put the shim in the place of the calls that every writer of ours goes through."""
        opened, replaced, synced = io.open, os.replace, os.fsync
        faults = self

        def open_(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if any(letter in mode for letter in "wax+") and str(file).startswith(faults.below):
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


def serve() -> None:
    """Answer requests until there are no more."""
    import torch

    import probe

    torch.set_num_threads(1)
    model = probe.load("needle")
    for line in sys.stdin:
        asked = json.loads(line)
        code, count = _forked(model, Path(asked["out"]), asked["kind"], asked["at"])
        print(json.dumps({"code": code, "count": count}), flush=True)


def _forked(model: Any, out: Path, kind: str, at: int) -> tuple[int, int]:
    """Play in a child; return how it ended (0, 1 for an error of the disk, 2 for another, 128 + the signal)."""
    ears, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        code = 2
        faults = Faults(out, kind, at)
        try:
            # Beside the run, and no write of it.
            (out.parent / "small.yaml").write_text(BOOK, encoding="utf-8")
            faults.install()
            play(model, out)
            code = 0
        except OSError:
            code = 1
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        os.write(mouth, str(faults.count).encode())
        os._exit(code)
    os.close(mouth)
    with os.fdopen(ears) as told:
        count = told.read()
    _, status = os.waitpid(child, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return code, int(count or 0)


def _torn(opened: Any, file: Any) -> None:
    with opened(file, "wb") as part:
        part.write(b'{"half": ')
        part.flush()


if __name__ == "__main__":
    serve()

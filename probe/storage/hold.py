"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from probe.errors import RunFolderInUse

LOCK_FILE = ".lock"
"""The file in the run folder that says who holds it. It stays when nobody does."""

_held: dict[Path, _Held] = {}
_guard = threading.Lock()


@dataclass
class _Held:
    descriptor: int
    times: int = 0


@contextlib.contextmanager
def hold(path: Path | str) -> Iterator[None]:
    """Hold a run folder, making it if need be; raises RunFolderInUse naming the process that holds it.

    A process may hold a folder more than once. The operating system frees it when the holder ends, however it ends.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    with _guard:
        if folder not in _held:
            _held[folder] = _Held(_lock(folder))
        _held[folder].times += 1
    try:
        yield
    finally:
        with _guard:
            _held[folder].times -= 1
            if not _held[folder].times:
                os.close(_held.pop(folder).descriptor)


def _lock(folder: Path) -> int:
    # Not on Windows, where traces can still be read.
    import fcntl

    path = folder / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
    except BlockingIOError as error:
        holder = _holder(os.pread(descriptor, 1000, 0))
        os.close(descriptor)
        raise RunFolderInUse(f"{folder} is in use by {holder}") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _holder(data: bytes) -> str:
    try:
        value = json.loads(data)
        return f"process {int(value['process'])} on {value['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"

"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from probe.errors import NotAvailable, RunFolderInUse, StoreCorrupt, UsageError
from probe.storage.durable import read_bytes
from probe.storage.object_lease import lease, lease_abandoned
from probe.storage.object_path import Location, ObjectPath, location

LOCK_FILE = ".lock"
"""The file in the run folder that says who holds it. It stays when nobody does."""

_MOST_BYTES = 1000
_held: dict[Path, _Held] = {}
_guard = threading.Lock()


@dataclass
class _Held:
    descriptor: int
    times: int = 0


@contextlib.contextmanager
def hold(path: Location | str) -> Iterator[None]:
    """Hold a run folder, making it if need be; in object storage, by a lease.

    Raises RunFolderInUse naming the process that holds it, or a `.lock` that is not ours; UsageError where there can be
    no such folder.
    A process may hold a folder more than once. The operating system frees it when the holder ends, however it ends.
    """
    where = location(path)
    if isinstance(where, ObjectPath):
        with lease(where):
            yield
        return
    try:
        folder = _take(where)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise cannot_hold(path, error) from error
    try:
        yield
    finally:
        with _guard:
            _held[folder].times -= 1
            if not _held[folder].times:
                os.close(_held.pop(folder).descriptor)


def abandoned(path: Location | str) -> bool:
    """Return whether the process that held a run folder last was of this machine and has ended.

    False where that cannot be told: nobody held it, or somebody on another machine, unless a run in object storage has
    not heard of it for minutes. Nothing is locked for the answer.
    """
    where = location(path)
    if isinstance(where, ObjectPath):
        try:
            return lease_abandoned(where)
        except RunFolderInUse:
            return False
    # There a signal of 0 is no question.
    if os.name == "nt":
        return False
    try:
        value = json.loads(read_bytes(where / LOCK_FILE, _MOST_BYTES))
        if value["host"] != socket.gethostname():
            return False
        os.kill(int(value["process"]), 0)
    except ProcessLookupError:
        return True
    except (NotAvailable, StoreCorrupt, OSError, OverflowError, ValueError, KeyError, TypeError):
        return False
    return False


def cannot_hold(path: Location | str, error: Exception) -> UsageError:
    """Return the error that says, from what the system said, why there can be no run folder at a path."""
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    if isinstance(error, FileExistsError):
        reason = "it is not a folder"
    return UsageError(f"{path} cannot hold a run: {reason}; give another folder with --out")


def _take(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    folder = path.resolve()
    with _guard:
        if folder not in _held:
            _held[folder] = _Held(_lock(folder))
        _held[folder].times += 1
    return folder


def _lock(folder: Path) -> int:
    # Not on Windows, where traces can still be read.
    import fcntl

    path = folder / LOCK_FILE
    not_ours = RunFolderInUse(f"{path} was not written by a run; move it away, or give another folder with --out")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise not_ours from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise not_ours
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        before = os.pread(descriptor, _MOST_BYTES, 0)
        # A crash of the machine can leave zeros.
        if before.strip(b"\0") and _holder(before) is None:
            raise not_ours
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
    except BlockingIOError as error:
        holder = _holder(os.pread(descriptor, _MOST_BYTES, 0)) or "another process"
        os.close(descriptor)
        raise RunFolderInUse(f"{folder} is in use by {holder}") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _holder(data: bytes) -> str | None:
    try:
        value = json.loads(data)
        return f"process {int(value['process'])} on {value['host']}"
    except (ValueError, KeyError, TypeError):
        return None

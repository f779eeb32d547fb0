"""One process at a time in a run that lies in object storage: a lease, put where none is, and renewed.

Each taker's lease has the next number, so that of two who find the same one abandoned only one puts the next. Who was
silent for too long and was taken over finds out before anything more is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from probe.errors import NotAvailable, RunFolderInUse, StoreCorrupt, StoreUnreachable, UsageError
from probe.storage.object_path import ObjectPath

LEASES: Final = ".lease"
"""The folder in the run that the leases lie in; empty while nobody writes."""
RENEWED_EVERY: Final = 60.0
"""Seconds between two renewals."""
SILENT_FOR: Final = 300.0
"""Seconds without a renewal after which a holder that cannot be asked is taken over."""

_NAME: Final = re.compile(r"[0-9]{8}\.json")
_MOST_BYTES: Final = 1000
_held: dict[ObjectPath, _Lease] = {}
_unheld: set[str] = set()
_guard = threading.Lock()


@dataclass
class _Lease:
    folder: ObjectPath
    object: ObjectPath
    token: str
    renewed: float
    """When it was last known to be ours, by the clock that runs on while a machine sleeps."""
    times: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise RunFolderInUse where another process took the run over."""
        standing = _standing(self.folder)
        if [holder.get("token") for holder in standing.values()] != [self.token]:
            by = ", ".join(map(_called, standing.values())) or "another process, which has ended"
            raise RunFolderInUse(f"{self.folder} was taken over by {by}: this process was silent for too long")

    def renew(self) -> None:
        if time.time() - self.renewed > SILENT_FOR / 2:
            self.check()
        now = time.time()
        self.object.write(_body(self.token))
        self.renewed = now

    def keep(self) -> None:
        """Renew until it is given back."""
        while not self.ended.wait(RENEWED_EVERY):
            # What is written next finds out what became of the store, or of the lease.
            with contextlib.suppress(StoreUnreachable, RunFolderInUse):
                self.renew()


@contextlib.contextmanager
def lease(folder: ObjectPath) -> Iterator[None]:
    """Hold a run for the length of a block; a process may hold it more than once.

    Raises RunFolderInUse naming the process that holds it, UsageError where the store lets everybody overwrite.
    """
    with _guard:
        if folder not in _held:
            _held[folder] = _taken(folder)
            threading.Thread(target=_held[folder].keep, name="probe-lease", daemon=True).start()
        _held[folder].times += 1
    try:
        yield
    finally:
        with _guard:
            _held[folder].times -= 1
            if not _held[folder].times:
                ended = _held.pop(folder)
                ended.ended.set()
                # Where it cannot be taken away, this process knows it as given back, and others when it has ended.
                _unheld.add(ended.token)
                with contextlib.suppress(StoreUnreachable):
                    ended.object.parent.remove([ended.object.name])


def is_held(folder: ObjectPath) -> bool:
    """Return whether this process holds the run."""
    return folder in _held


def assure(folder: ObjectPath) -> None:
    """Raise RunFolderInUse where this process does not hold the run any more; the store is asked only after silence."""
    held = _held.get(folder)
    if held is None:
        raise RunFolderInUse(f"{folder} is not held by this process")
    if time.time() - held.renewed > SILENT_FOR / 2:
        held.renew()


def lease_abandoned(folder: ObjectPath) -> bool:
    """Return whether the process that held the run last has ended or is silent for too long; False where none did."""
    return any(map(_gone, _standing(folder).values()))


def _taken(folder: ObjectPath) -> _Lease:
    before = _standing(folder)
    _refuse(folder, before)
    number = max((int(name.removesuffix(".json")) for name in before), default=0) + 1
    mine = folder / LEASES / f"{number:08d}.json"
    taken = _Lease(folder, mine, secrets.token_hex(16), time.time())
    # Until it is certain: where the connection is lost in between, what may lie there is nobody's.
    _unheld.add(taken.token)
    with contextlib.suppress(FileExistsError):
        mine.create(_body(taken.token))
    _check_conditions(taken)
    # Who found nothing here, or the same lease abandoned, may have put one beside it.
    try:
        _refuse(folder, {name: h for name, h in _standing(folder).items() if h.get("token") != taken.token})
    except RunFolderInUse:
        mine.parent.remove([mine.name])
        raise
    mine.parent.remove(before)
    _unheld.discard(taken.token)
    return taken


def _check_conditions(taken: _Lease) -> None:
    """See that what is there stays where something is put only if nothing is: some stores know no such condition."""
    other = secrets.token_hex(16)
    # It is nobody's, should it have arrived though its answer was lost.
    _unheld.add(other)
    try:
        taken.object.create(_body(other))
    except FileExistsError:
        holder = _read(taken.object)
        if holder.get("token") != taken.token:
            raise RunFolderInUse(f"{taken.folder} is in use by {_called(holder)}") from None
        return
    taken.object.parent.remove([taken.object.name])
    raise UsageError(
        f"{taken.folder}: this store overwrites what it was asked to leave (If-None-Match), so two processes could "
        "write one run; runs can be read from it, and none is written"
    )


def _refuse(folder: ObjectPath, standing: Mapping[str, Mapping[str, Any]]) -> None:
    for holder in standing.values():
        if not _gone(holder):
            silent = max(0.0, time.time() - holder["renewed"])
            raise RunFolderInUse(
                f"{folder} is in use by {_called(holder)}, heard of {silent:.0f} s ago; after {SILENT_FOR:.0f} s of "
                "silence it can be taken over"
            )


def _standing(folder: ObjectPath) -> dict[str, dict[str, Any]]:
    """Return what each lease says, by its name."""
    found = {}
    for each in (folder / LEASES).iterdir():
        if _NAME.fullmatch(each.name):
            with contextlib.suppress(NotAvailable):
                found[each.name] = _read(each)
    return found


def _read(path: ObjectPath) -> dict[str, Any]:
    try:
        value = json.loads(path.read(_MOST_BYTES))
        told = {"process": int(value["process"]), "renewed": float(value["renewed"]), "host": str(value["host"])}
        return {**value, **told}
    except (StoreCorrupt, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunFolderInUse(f"{path} was not written by a run; move it away, or give another place") from error


def _gone(holder: Mapping[str, Any]) -> bool:
    if holder.get("token") in _unheld or time.time() - holder["renewed"] > SILENT_FOR:
        return True
    if os.name == "nt" or (holder["host"], holder.get("processes")) != (socket.gethostname(), _processes()):
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _processes() -> str:
    """Return which processes can be seen from here: two containers of one host see others, under the same numbers."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _called(holder: Mapping[str, Any]) -> str:
    return f"process {holder['process']} on {holder['host']}"


def _body(token: str) -> bytes:
    told = {"host": socket.gethostname(), "process": os.getpid(), "processes": _processes()}
    return json.dumps({**told, "token": token, "renewed": time.time()}).encode()

"""The folder of a trace of its own: made aside, and put in its place whole."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from probe.errors import ProbeError, StoreUnreachable, UsageError
from probe.storage.durable import read_json, sync_folder, write_json
from probe.storage.manifest import RECORD_FORMAT
from probe.storage.object_lease import LEASES, lease
from probe.storage.object_path import Location, ObjectPath, location


@contextlib.contextmanager
def saved_trace(path: Location | str, *, overwrite: bool = False) -> Iterator[Location]:
    """Yield an empty folder to write a trace in, and put it at `path` when the block ends well.

    Raises UsageError, before anything is written, where something stands there: always if that is not a saved trace,
    else without `overwrite`; in object storage, where nothing can be put aside, always.
    """
    target = location(path)
    if isinstance(target, ObjectPath):
        with _new_objects(target):
            yield target
        return
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        if not _is_saved_trace(target):
            raise UsageError(f"{target} exists and is not a saved trace; it stays as it is")
        if not overwrite:
            raise UsageError(f"{target} exists; overwrite=True replaces it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as aside:
        new = Path(aside, "new")
        new.mkdir()
        yield new
        if target.exists():
            target.rename(Path(aside, "old"))
        new.rename(target)
    sync_folder(target.parent)


def write_trace_json(folder: Location, unit: str) -> None:
    """Say which unit the folder's trace is."""
    write_json(folder / "trace.json", {"format": RECORD_FORMAT, "kind": "trace", "unit": unit})


@contextlib.contextmanager
def _new_objects(target: ObjectPath) -> Iterator[None]:
    with lease(target):
        if any(each.name != LEASES for each in target.iterdir()):
            raise UsageError(f"something lies at {target} already; it stays, save under another name")
        try:
            yield
        except BaseException:
            with contextlib.suppress(StoreUnreachable):
                target.remove(name for name in target.walk() if not name.startswith(f"{LEASES}/"))
            raise


def _is_saved_trace(folder: Path) -> bool:
    try:
        value = read_json(folder / "trace.json")
    except (ProbeError, OSError):
        return False
    return isinstance(value, dict) and value.get("kind") == "trace"

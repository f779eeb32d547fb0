"""The files of a unit, as bytes by relative path: in memory, being written, or sealed by a manifest."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from probe.errors import NotAvailable, StoreCorrupt
from probe.storage.durable import MAX_JSON_BYTES, read_bytes, sync_files
from probe.storage.manifest import Entry, Manifest, place
from probe.storage.object_lease import assure
from probe.storage.object_path import Location, ObjectPath

MARKER: Final = ".probe-unit"
"""An empty file, the first in a unit's folder and the last to go: a folder without it is not ours to remove."""


class UnitFiles(Protocol):
    """The files of one unit."""

    @property
    def far(self) -> bool:
        """Whether each read is a journey over a network, so that many are better made at once."""

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None where there is none; raises StoreCorrupt where they are not what was written."""

    def paths(self) -> Iterator[str]:
        """Yield the path of every file."""


class MemoryFiles:
    """Files in memory, for notebooks."""

    far = False

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None where there is none."""
        return self._files.get(path)

    def write(self, path: str, data: bytes) -> None:
        """Add a file or replace it."""
        self._files[path] = data

    def paths(self) -> Iterator[str]:
        """Yield the path of every file."""
        yield from self._files


class OpenFiles:
    """Files of a unit that is being written; hashed on their way, so that what the disk does to them shows later."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """The unit's folder."""
        self._entries: dict[str, Entry] = {}
        # An empty one is what a crash leaves before the marker is there, or after it has gone.
        folder.mkdir(exist_ok=True)
        (folder / MARKER).touch(exist_ok=False)

    def write(self, path: str, data: bytes) -> None:
        """Add a file or replace it."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        self._entries[path] = Entry(len(data), hashlib.sha256(data).hexdigest())

    def seal(self) -> bytes:
        """Force everything to the disk, write the manifest, and return it."""
        manifest = Manifest(self._entries).to_bytes()
        (self.folder / "manifest.json").write_bytes(manifest)
        files = [*(self.folder / path for path in self._entries), self.folder / "manifest.json"]
        # All at once: the file system then needs one turn for them, not one each.
        sync_files([*files, *{folder for path in files for folder in path.parents if self.folder in folder.parents}])
        sync_files([self.folder, self.folder.parent])
        return manifest


class OpenObjects:
    """Files of a unit that is being written to object storage, as they come: no copy of them lies on a disk."""

    def __init__(self, folder: ObjectPath) -> None:
        self.folder = folder
        """The unit's place."""
        self._entries: dict[str, Entry] = {}
        self._waiting: dict[str, bytes] = {}
        self._waiting_bytes = 0
        assure(_run_of(folder))
        (folder / MARKER).create(b"")

    def write(self, path: str, data: bytes) -> None:
        """Add a file or replace it."""
        self._entries[path] = Entry(len(data), hashlib.sha256(data).hexdigest())
        self._waiting_bytes += len(data) - len(self._waiting.get(path, b""))
        self._waiting[path] = data
        if self._waiting_bytes >= _MOST_WAITING:
            self._put()

    def seal(self) -> bytes:
        """Put what is left, then the manifest, and return it."""
        self._put()
        manifest = Manifest(self._entries).to_bytes()
        (self.folder / "manifest.json").write(manifest)
        return manifest

    def _put(self) -> None:
        assure(_run_of(self.folder))
        self.folder.write_all(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0


def open_files(folder: Location) -> OpenFiles | OpenObjects:
    """Begin a unit's files in a folder that is empty, or not there."""
    return OpenObjects(folder) if isinstance(folder, ObjectPath) else OpenFiles(folder)


def is_unit(folder: Location) -> bool:
    """Return whether a folder was made for a unit, whole or not."""
    return not folder.is_symlink() and (folder / MARKER).is_file()


def remove_unit(folder: Location) -> None:
    """Remove a unit's folder so that a crash at any moment leaves one that is still known as ours, or an empty one."""
    if isinstance(folder, ObjectPath):
        folder.remove(name for name in folder.walk() if name != MARKER)
        folder.remove([MARKER])
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    (folder / MARKER).unlink(missing_ok=True)
    folder.rmdir()


def discard_folder(folder: Location) -> None:
    """Remove whatever stands at a unit's place, ours or not; a link goes, what it leads to stays."""
    if isinstance(folder, ObjectPath):
        folder.remove(folder.walk())
    elif folder.is_symlink():
        folder.unlink()
    elif folder.is_dir():
        shutil.rmtree(folder)


class SealedFiles:
    """Files of a committed unit. Only what the manifest lists is there, and every read is held against its hash."""

    def __init__(self, folder: Location, manifest_sha256: str, *, check_sizes: bool = True) -> None:
        """Open the unit.

        Raises StoreCorrupt where the manifest is not the one committed, the folder holds a link or, unless
        `check_sizes` is False, a file is missing or has another size. In object storage that is seen when it is read,
        and not before: to list a large unit takes as long as to read a part of it.
        """
        self.folder = folder
        """The unit's folder."""
        self.far = isinstance(folder, ObjectPath)
        """Whether each read is a journey over a network."""
        self._kept: dict[str, bytes] = {}
        path = folder / "manifest.json"
        if folder.is_symlink() or folder.parent.is_symlink():
            raise StoreCorrupt(f"{folder} is a link, or stands behind one; a trace holds none")
        try:
            data = read_bytes(path, _MAX_MANIFEST_BYTES)
        except NotAvailable as error:
            raise StoreCorrupt(f"{path} is missing") from error
        if hashlib.sha256(data).hexdigest() != manifest_sha256:
            raise StoreCorrupt(f"{path} is not the manifest that was committed")
        self.manifest = Manifest.from_bytes(data, str(path))
        """What was written."""
        if check_sizes and isinstance(folder, Path) and (wrong := self.manifest.missing(folder)):
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise StoreCorrupt(f"{folder}: {wrong[0]}{more}")

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None where the manifest lists none; raises StoreCorrupt where they changed."""
        entry = self.manifest.files.get(path)
        if entry is None:
            return None
        if path in self._kept:
            return self._kept[path]
        data = _read_sealed(self.folder, path, entry)
        if self.far and path.endswith(".json") and entry.size <= _SMALL and len(self._kept) < _MOST_KEPT:
            # What the arrays are is asked for again and again.
            self._kept[path] = data
        return data

    def paths(self) -> Iterator[str]:
        """Yield the path of every file that the manifest lists."""
        yield from self.manifest.files


_SMALL: Final = 2**14
_MOST_KEPT: Final = 2**10
_MOST_WAITING: Final = 16 * 2**20
"""Bytes of a unit that wait in memory to be put together."""


def _run_of(unit: ObjectPath) -> ObjectPath:
    return unit.parent.parent


_MAX_MANIFEST_BYTES = 2**25
_MAX_CHUNK_BYTES = 2**25


def _read_sealed(folder: Location, path: str, entry: Entry) -> bytes:
    try:
        # The manifest may be anybody's, and say of a file that it is as large as it is.
        data = read_bytes(folder / path, min(entry.size, _MAX_CHUNK_BYTES if "/c/" in path else MAX_JSON_BYTES))
    except NotAvailable as error:
        raise StoreCorrupt(f"{folder}: {place(path)} is missing ({path})") from error
    except StoreCorrupt as error:
        raise StoreCorrupt(f"{folder}: {place(path)} is not what was written: {error}") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise StoreCorrupt(f"{folder}: {place(path)} is not what was written: its hash differs ({path})")
    return data

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

MARKER: Final = ".probe-unit"
"""An empty file, the first in a unit's folder and the last to go: a folder without it is not ours to remove."""


class UnitFiles(Protocol):
    """The files of one unit."""

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None where there is none; raises StoreCorrupt where they are not what was written."""

    def paths(self) -> Iterator[str]:
        """Yield the path of every file."""


class MemoryFiles:
    """Files in memory, for notebooks."""

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


def is_unit(folder: Path) -> bool:
    """Return whether a folder was made for a unit, whole or not."""
    return not folder.is_symlink() and (folder / MARKER).is_file()


def remove_unit(folder: Path) -> None:
    """Remove a unit's folder so that a crash at any moment leaves one that is still known as ours, or an empty one."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    (folder / MARKER).unlink(missing_ok=True)
    folder.rmdir()


class SealedFiles:
    """Files of a committed unit. Only what the manifest lists is there, and every read is held against its hash."""

    def __init__(self, folder: Path, manifest_sha256: str, *, check_sizes: bool = True) -> None:
        """Open the unit.

        Raises StoreCorrupt where the manifest is not the one committed, the folder holds a link or, unless
        `check_sizes` is False, a file is missing or has another size.
        """
        self.folder = folder
        """The unit's folder."""
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
        if check_sizes and (wrong := self.manifest.missing(folder)):
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise StoreCorrupt(f"{folder}: {wrong[0]}{more}")

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None where the manifest lists none; raises StoreCorrupt where they changed."""
        entry = self.manifest.files.get(path)
        return None if entry is None else _read_sealed(self.folder, path, entry)

    def paths(self) -> Iterator[str]:
        """Yield the path of every file that the manifest lists."""
        yield from self.manifest.files


_MAX_MANIFEST_BYTES = 2**25
_MAX_CHUNK_BYTES = 2**25


def _read_sealed(folder: Path, path: str, entry: Entry) -> bytes:
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

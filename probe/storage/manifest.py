"""Every file of a unit with its size and hash: what was written, and what must be found."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from probe.errors import NewerFormat, StoreCorrupt
from probe.storage.durable import canonical_json, parse_json

FORMAT: Final = 2
"""Version of a unit's form on disk; raised when an old reader would misread a new unit."""

RECORD_FORMAT: Final = 1
"""Version of the form of `run.json` and `trace.json`."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")


class Entry(NamedTuple):
    """What a file must be."""

    size: int
    """Size in bytes."""
    sha256: str
    """Hash of the contents, in hexadecimal."""


@dataclass(frozen=True)
class Manifest:
    """The files of one unit, by path relative to the unit's folder."""

    files: Mapping[str, Entry]
    """Size and hash of each file; the manifest itself is not listed, since the commit record holds its hash."""

    def to_bytes(self) -> bytes:
        """Return the manifest as it stands on disk: canonical JSON."""
        rows = [[path, *self.files[path]] for path in sorted(self.files)]
        return canonical_json({"format": FORMAT, "files": rows}).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Manifest:
        """Read what `to_bytes` wrote; anything else, such as a path that leads out of the folder, is StoreCorrupt."""
        value = parse_json(data, name)
        if not isinstance(value, dict) or not isinstance(value.get("files"), list):
            raise StoreCorrupt(f"{name} is not a manifest")
        check_format(value.get("format"), name)
        files: dict[str, Entry] = {}
        for row in value["files"]:
            match row:
                case [str(path), int(size), str(sha256)] if size >= 0 and _SHA256.fullmatch(sha256):
                    if path in files or not all(_PART.fullmatch(part) for part in path.split("/")):
                        raise StoreCorrupt(f"{name}: the path {path[:200]!r} is listed twice or leads out of the unit")
                    files[path] = Entry(size, sha256)
                case _:
                    raise StoreCorrupt(f"{name}: not an entry of a manifest: {str(row)[:200]}")
        return cls(MappingProxyType(files))

    def missing(self, folder: Path) -> list[str]:
        """Return what a look at sizes alone shows to be wrong with the folder; a link in it raises StoreCorrupt."""
        found = dict(_sizes(folder, ""))
        wrong = []
        for path, entry in self.files.items():
            if path not in found:
                wrong.append(f"{place(path)} is missing")
            elif found[path] != entry.size:
                wrong.append(f"{place(path)} has {found[path]} bytes where {entry.size} were written")
        return wrong


def place(path: str) -> str:
    """Return a unit's file in words, e.g. `array entropy, chunk 3/0/0`."""
    array, separator, chunk = path.partition("/c/")
    if separator:
        return f"array {array}, chunk {chunk}"
    if path.endswith("/zarr.json") and path != "layers/zarr.json":
        return f"array {path.removesuffix('/zarr.json')}, its zarr.json"
    return path


def check_format(value: Any, name: str, newest: int = FORMAT) -> None:
    """Raise StoreCorrupt where the version of a form is not one that this toolkit reads, naming both."""
    if type(value) is not int or value < 1:
        raise StoreCorrupt(f"{name} says no format version")
    if value > newest:
        raise NewerFormat(
            f"{name} has format version {value}, and this version of longcontext-probe reads up to {newest}: "
            "a newer version wrote it, and can read it"
        )


def _sizes(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise StoreCorrupt(f"{folder / entry.name} is a link; a trace holds none")
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(folder / entry.name, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield f"{prefix}{entry.name}", entry.stat(follow_symlinks=False).st_size

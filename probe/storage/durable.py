"""Bytes that outlive a crash: written aside, forced to the disk, then renamed."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final

from probe.errors import NotAvailable, StoreCorrupt, UsageError
from probe.storage.object_path import Location, ObjectPath, location

MAX_JSON_BYTES = 256 * 2**20
"""A JSON file larger than this was not written by this toolkit and is refused."""
MAX_JSON_MEMORY: Final = 320 * 2**20
"""JSON whose values would take more memory than this is refused: `[[],[],…` takes thirty times its size."""
_PIECE_BYTES: Final = 2**20


def canonical_json(value: Any) -> str:
    """Return the one way to write a JSON value: keys sorted, no spaces; raises UsageError where it is not one."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"not a JSON value: {error}") from error


def parse_json(data: bytes, name: str) -> Any:
    """Return the JSON value in `data`; raises StoreCorrupt naming the file where there is none, or too much."""
    if (needed := _memory(data)) > MAX_JSON_MEMORY:
        raise StoreCorrupt(f"{name} would take about {needed // 2**20} MiB of memory, more than a file of JSON may")
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{name} is not JSON: {error}") from error


def _memory(data: bytes) -> int:
    """Return the most memory in bytes that text and values of some JSON take in CPython, found without reading it."""
    if len(data) < MAX_JSON_MEMORY // 100:
        return 0
    text = 1 if data.isascii() else 4
    strings = 4 if text == 4 or b"\\u" in data else 1
    values = {b"[": 72, b"{": 240, b",": 40, b'"': 28}
    return len(data) * (1 + text + strings) + sum(data.count(mark) * size for mark, size in values.items())


def read_json(path: Location) -> Any:
    """Return the JSON value in a file; raises NotAvailable where there is no file, StoreCorrupt where it is none."""
    return parse_json(read_bytes(path, MAX_JSON_BYTES), str(path))


def read_bytes(path: Location, limit: int) -> bytes:
    """Return a plain file's bytes; a link, a folder, a device or a file above `limit` raises StoreCorrupt."""
    if isinstance(path, ObjectPath):
        return path.read(limit)
    with _opened(path) as file:
        # Asked for as many bytes as may be, Python would reserve them all.
        data = _read(file, path, min(os.fstat(file.fileno()).st_size, limit) + 1)
    if len(data) > limit:
        raise StoreCorrupt(f"{path} has more than the {limit} bytes that it may have")
    return data


def _opened(path: Path) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise NotAvailable(f"{path} is not there") from error
    except OSError as error:
        raise StoreCorrupt(f"{path} cannot be read, or is a link: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreCorrupt(f"{path} cannot be read: it is no plain file")
    return os.fdopen(descriptor, "rb")


def _read(file: BinaryIO, path: Path, most: int) -> bytes:
    try:
        return file.read(most)
    except OSError as error:
        raise StoreCorrupt(f"{path} cannot be read: {error.strerror}") from error


def file_hash(path: Location, limit: int) -> tuple[int, str]:
    """Return size and SHA-256 of a plain file, read a piece at a time; raises as `read_bytes` does."""
    sha256, size = hashlib.sha256(), 0
    for piece in path.pieces() if isinstance(path, ObjectPath) else _pieces(path):
        sha256.update(piece)
        size += len(piece)
        if size > limit:
            raise StoreCorrupt(f"{path} has more than the {limit} bytes that it may have")
    return size, sha256.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    with _opened(path) as file:
        while piece := _read(file, path, _PIECE_BYTES):
            yield piece


def write_json(path: Location | str, value: Any) -> None:
    """Write a JSON file so that a crash at any moment leaves the old one or the new one whole."""
    write_bytes(location(path), json_bytes(value, path))


def json_bytes(value: Any, name: Location | str) -> bytes:
    """Return what `write_json` writes; raises UsageError, naming the file, for what is no JSON value."""
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{name} cannot hold this: {error}") from error
    # Half a surrogate pair, which a byte-level tokenizer can give, has no UTF-8 form.
    return text.encode(errors="backslashreplace") + b"\n"


def write_bytes(path: Location, data: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one whole."""
    if isinstance(path, ObjectPath):
        path.write(data)
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        # Whoever wrote the folder may have put a link there, which leads out of it.
        aside.unlink(missing_ok=True)
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def half_written(path: Location) -> bool:
    """Return whether a file is what a crash left of one that was being written aside; an object never is."""
    if isinstance(path, ObjectPath):
        return False
    return re.fullmatch(r"\..+\.[0-9]+\.writing", path.name) is not None and path.is_file() and not path.is_symlink()


def sync_folder(folder: Location) -> None:
    """Force a folder's entries to the disk. Windows has no such call, and objects are there once they are put."""
    if os.name == "nt" or isinstance(folder, ObjectPath):
        return
    _sync(folder)


def sync_files(paths: Iterable[Path]) -> None:
    """Force files to the disk, several at a time, so that the file system can write them in one go."""
    for _ in _pool().map(_sync, paths):
        pass


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, "probe-sync")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

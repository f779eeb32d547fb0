"""A place in object storage: what reading and writing a run asks of `pathlib.Path`, over fsspec."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from probe.errors import NotAvailable, ProbeError, StoreCorrupt, StoreUnreachable, UsageError

PROTOCOLS: Final = ("s3", "memory")
"""File systems of fsspec that are taken: there `pipe_file(mode="create")` never overwrites, whoever else puts."""

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+:/")
_SEGMENT: Final = re.compile(r"[^/\\?#*\[\]\x00-\x1f\x7f]+")
_LONGEST: Final = 800
_PIECE_BYTES: Final = 16 * 2**20


class ObjectPath:
    """A key of an object store, or what all keys below it have in common.

    An object is put whole or not at all, and there is no rename, no append and no link. Whatever else than a missing
    object keeps it from being read or written raises StoreUnreachable, so that nothing is taken for missing.
    """

    def __init__(self, protocol: str, parts: tuple[str, ...]) -> None:
        self.protocol = protocol
        """Which file system: one of `PROTOCOLS`."""
        self.parts = parts
        """Bucket, then what stands between the slashes."""

    @classmethod
    def parse(cls, url: str) -> ObjectPath:
        """Return the place that a URL names; raises UsageError where it is none, without repeating a password in it."""
        if "@" in urlsplit(url).netloc:
            raise UsageError(
                "a URL with a user or a password in it is not taken: it would stand in the run's record and its "
                "report; the environment or ~/.aws tell the file system who you are"
            )
        protocol, _, rest = url.partition("://")
        parts = tuple(rest.rstrip("/").split("/"))
        if protocol not in PROTOCOLS:
            taken = ", ".join(f"{each}://" for each in ("file", *PROTOCOLS))
            raise UsageError(f"{protocol}:// is not taken; {taken} and paths of this machine are")
        if len(url) > _LONGEST or any(part in (".", "..") or not _SEGMENT.fullmatch(part) for part in parts):
            raise UsageError(
                f"{url[:200]!r} cannot name a run: {protocol}://bucket/folder, without '..', '?', '#', '*', '[', ']'"
            )
        return cls(protocol, parts)

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.parts[-1]

    @property
    def parent(self) -> ObjectPath:
        """What stands before the last slash; a bucket is its own."""
        return ObjectPath(self.protocol, self.parts[:-1] or self.parts)

    def with_name(self, name: str) -> ObjectPath:
        """Return the place beside this one."""
        return self.parent / name

    def resolve(self) -> ObjectPath:
        """Return the place itself: there are no links."""
        return self

    def is_symlink(self) -> bool:
        """Return False: there are no links."""
        return False

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: what is put below a key needs no folder."""

    def exists(self) -> bool:
        """Return whether there is an object, or one below."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Return whether there is an object."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Return whether there is an object below."""
        return self._kind() == "directory"

    def stamp(self) -> tuple[str, int]:
        """Return what tells that the object is another one: its tag or time, and its size; ("", -1) where none is."""
        about = self._about()
        if about is None:
            return "", -1
        return str(about.get("ETag") or about.get("LastModified") or about.get("created")), int(about.get("size") or 0)

    def iterdir(self) -> Iterator[ObjectPath]:
        """Yield what stands directly below."""
        with self._reaching("listed"):
            try:
                found = self._files.ls(str(self), detail=False)
            except FileNotFoundError:
                return
        names = sorted({self._below(key).split("/")[0] for key in found})
        yield from (self / name for name in names if name)

    def walk(self) -> dict[str, int]:
        """Return the size in bytes of every object below, by its key relative to this one."""
        with self._reaching("listed"):
            try:
                found = self._files.find(str(self), detail=True)
            except FileNotFoundError:
                return {}
        return {name: int(about["size"]) for key, about in found.items() if (name := self._below(key))}

    def read(self, limit: int) -> bytes:
        """Return the object's bytes; NotAvailable where there is none, StoreCorrupt where there are more than `limit`.

        No more than that and one byte is asked for.
        """
        data = self._range(0, limit + 1)
        if len(data) > limit:
            raise StoreCorrupt(f"{self} has more than the {limit} bytes that it may have")
        return data

    def pieces(self) -> Iterator[bytes]:
        """Yield the object's bytes, 16 MiB at a time; raises NotAvailable where there is none."""
        for start in itertools.count(0, _PIECE_BYTES):
            yield (piece := self._range(start, start + _PIECE_BYTES))
            if len(piece) < _PIECE_BYTES:
                return

    def write(self, data: bytes) -> None:
        """Put the object, in the place of one that is there."""
        self._put(lambda: self._files.pipe_file(str(self), data))

    def create(self, data: bytes) -> None:
        """Put the object; raises FileExistsError where there is one, which stays."""
        self._put(lambda: self._files.pipe_file(str(self), data, mode="create"))

    def write_all(self, objects: Mapping[str, bytes]) -> None:
        """Put objects below this one, by their relative keys, many at a time and in no order."""
        if objects:
            self._put(lambda: self._files.pipe({f"{self}/{name}": data for name, data in objects.items()}))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object; raises FileNotFoundError where there is none, unless `missing_ok`."""
        if self.is_file():
            self.parent.remove([self.name])
        elif not missing_ok:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(self))

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects below this one, by their relative keys; one that is gone already is no error."""
        keys = [f"{self}/{name}" for name in names]
        if keys:
            with self._reaching("removed"), contextlib.suppress(FileNotFoundError):
                self._files.rm(keys)

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.protocol, (*self.parts, *name.split("/")))

    def __str__(self) -> str:
        return f"{self.protocol}://{'/'.join(self.parts)}"

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(other) == str(self)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def _files(self) -> Any:
        return file_system(self.protocol)

    def _about(self) -> Mapping[str, Any] | None:
        with self._reaching("looked up"):
            try:
                found: Mapping[str, Any] = self._files.info(str(self))
            except FileNotFoundError:
                return None
        return found

    def _range(self, start: int, end: int) -> bytes:
        with self._reaching("read"):
            try:
                found: bytes = self._files.cat_file(str(self), start=start, end=end)
            except FileNotFoundError as error:
                raise NotAvailable(f"{self} is not there") from error
            except OSError as error:
                # S3 has no range to give behind an object's last byte.
                if error.errno != errno.EINVAL or self._files.info(str(self))["size"] > start:
                    raise
                return b""
        return found

    def _kind(self) -> str | None:
        about = self._about()
        return None if about is None else str(about["type"])

    def _below(self, key: str) -> str:
        """Return a listed key relative to this one; empty where it is not below."""
        prefix = self._files._strip_protocol(str(self)) + "/"
        return key[len(prefix) :] if key.startswith(prefix) else ""

    def _put(self, put: Callable[[], None]) -> None:
        with self._reaching("written"):
            try:
                put()
            except FileNotFoundError as error:
                raise StoreUnreachable(f"{self} cannot be written: there is no bucket {self.parts[0]!r}") from error

    @contextlib.contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ProbeError, FileExistsError):
            raise
        # Each file system has errors of its own, few of which are OSErrors.
        except Exception as error:
            said = str(error) or type(error).__name__
            raise StoreUnreachable(f"{self} cannot be {what}: {said}") from error


Location = Path | ObjectPath
"""Where a run or a trace lies."""


def location(place: str | Location) -> Location:
    """Return where a path or a URL leads: a folder of this machine, `file://` too, or object storage.

    Raises UsageError for a URL of another kind, NotAvailable where a package is missing.
    """
    if isinstance(place, ObjectPath):
        return place
    text = str(place)
    if not _URL.match(text):
        return Path(place)
    if "://" not in text:
        raise UsageError(f"{text[:200]!r} is no path of this machine: give a URL as text, with both of its slashes")
    if text.startswith("file://"):
        url = urlsplit(text)
        if url.netloc not in ("", "localhost") or url.query or url.fragment or not url.path:
            raise UsageError(f"{text[:200]!r} names no folder of this machine; write file:///folder")
        return Path(unquote(url.path))
    found = ObjectPath.parse(text)
    file_system(found.protocol)
    return found


@functools.cache
def file_system(protocol: str) -> Any:
    """Return fsspec's file system of a protocol; raises NotAvailable where the package for it is missing."""
    import fsspec

    try:
        # A listing that was kept would hide what another process wrote since.
        return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise NotAvailable(
            f"{protocol}:// needs a package that is not here ({error}): pip install 'longcontext-probe[{protocol}]'"
        ) from error

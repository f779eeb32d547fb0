"""A unit's files as zarr sees them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable
from itertools import product
from typing import Any, Final, Protocol

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from probe.durable import parse_json
from probe.errors import StoreCorrupt
from probe.manifest import place
from probe.unit_files import UnitFiles

CHUNK_BYTES: Final = 16 * 2**20
"""No chunk is larger than this, uncompressed: what one read may cost in memory."""

CODECS: Final[list[dict[str, Any]]] = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    # zarr's own default has no checksum, and then a flipped bit is a wrong number.
    {"name": "zstd", "configuration": {"level": 1, "checksum": True}},
]
"""How every chunk is encoded; a chunk in any other encoding was not written by this toolkit and is refused."""

_ITEM_BYTES: Final = (
    {"bool": 1}
    | {f"{kind}{8 * n}": n for kind in ("int", "uint") for n in (1, 2, 4, 8)}
    | {f"float{8 * n}": n for n in (2, 4, 8)}
)


class WritableFiles(UnitFiles, Protocol):
    """Files that can still be written."""

    def write(self, path: str, data: bytes) -> None:
        """Add a file or replace it."""

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""


class ZarrView(Store):  # type: ignore[misc]
    """Reads, and where the files are still open writes, a unit's arrays; holds no data of its own."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, files: UnitFiles, *, read_only: bool = True) -> None:
        super().__init__(read_only=read_only)
        self.files = files
        """Where the bytes are."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZarrView) and other.files is self.files and other.read_only == self.read_only

    def __str__(self) -> str:
        return "unit"

    def with_read_only(self, read_only: bool = False) -> ZarrView:
        """Return the same files under the other permission."""
        return ZarrView(self.files, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file's bytes, or part of them; None where there is no such file."""
        data = self.files.read(key)
        if data is None:
            return None
        if "/c/" in key and not 0 <= _content_bytes(data) <= CHUNK_BYTES:
            raise StoreCorrupt(f"{place(key)} does not unpack to a chunk of at most {CHUNK_BYTES} bytes")
        match byte_range:
            case RangeByteRequest(start=start, end=end):
                data = data[start:end]
            case OffsetByteRequest(offset=offset):
                data = data[offset:]
            case SuffixByteRequest(suffix=suffix):
                data = data[-suffix:] if suffix else b""
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of several files."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether there is such a file."""
        return key in set(self.files.paths())

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file."""
        self._check_writable()
        self._writable.write(key, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Remove a file."""
        self._check_writable()
        self._writable.delete(key)

    @property
    def _writable(self) -> WritableFiles:
        files: Any = self.files
        return files  # type: ignore[no-any-return]

    async def list(self) -> AsyncIterator[str]:
        """Yield every path."""
        for path in list(self.files.paths()):
            yield path

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield every path that starts so."""
        for path in list(self.files.paths()):
            if path.startswith(prefix):
                yield path

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield what stands directly in a folder. Files beside the arrays are not zarr's, and are not shown."""
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        seen = {path[len(prefix) :].split("/")[0] for path in self.files.paths() if path.startswith(prefix)}
        for name in sorted(seen):
            if prefix or name == "zarr.json" or f"{name}/zarr.json" in set(self.files.paths()):
                yield name


def check_arrays(files: UnitFiles, name: str) -> None:
    """Raise StoreCorrupt unless each array's shape is what its chunks on disk hold, chunk for chunk.

    So a shape that claims more than is there allocates nothing, and a missing chunk cannot read as a fill value.
    """
    paths = set(files.paths())
    chunks: dict[str, set[str]] = {}
    for path in paths:
        array, separator, _ = path.partition("/c/")
        if separator:
            chunks.setdefault(array, set()).add(path)
    for path in sorted(paths):
        array, separator, last = path.rpartition("/")
        if last == "zarr.json" and separator:
            _check_array(parse_json(files.read(path) or b"", f"{name}/{path}"), array, chunks.pop(array, set()), name)
    if chunks:
        raise StoreCorrupt(f"{name}: there are chunks of {min(chunks)!r}, but no such array")


def _check_array(value: Any, array: str, chunks: set[str], name: str) -> None:
    where = f"{name}: array {array}"
    try:
        shape, chunk_shape = value["shape"], value["chunk_grid"]["configuration"]["chunk_shape"]
        item_bytes, codecs = _ITEM_BYTES[value["data_type"]], value["codecs"]
        known = value["zarr_format"] == 3 and value["node_type"] == "array" and value["chunk_grid"]["name"] == "regular"
        known = known and value["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        known = known and not value.get("storage_transformers")
    except (KeyError, TypeError) as error:
        raise StoreCorrupt(f"{where} is not described as this toolkit describes one: {error!r}") from error
    sizes = [*shape, *chunk_shape] if isinstance(shape, list) and isinstance(chunk_shape, list) else [None]
    if not known or any(type(size) is not int or size < 0 for size in sizes) or len(shape) != len(chunk_shape):
        raise StoreCorrupt(f"{where} is not described as this toolkit describes one")
    if [_codec(codec, item_bytes) for codec in codecs] != [_codec(codec, item_bytes) for codec in CODECS]:
        raise StoreCorrupt(f"{where} is encoded as this toolkit encodes nothing")
    if math.prod(chunk_shape) * item_bytes > CHUNK_BYTES or 0 in chunk_shape:
        raise StoreCorrupt(f"{where} has chunks of {chunk_shape}, more than {CHUNK_BYTES} bytes or none at all")
    counts = [-(-size // step) for size, step in zip(shape, chunk_shape, strict=True)]
    # The number first: a shape of 10^12 would make as many names.
    expected = math.prod(counts)
    if expected == len(chunks):
        names = {f"{array}/c/" + "/".join(map(str, index)) for index in product(*map(range, counts))}
        if names == chunks:
            return
    raise StoreCorrupt(f"{where} of shape {shape} has {expected} chunks, but those of the manifest are {len(chunks)}")


def _content_bytes(frame: bytes) -> int:
    """Return the size that a zstd frame says it unpacks to (RFC 8878, section 3.1.1.1), -1 where it says none."""
    if len(frame) < 6 or frame[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    descriptor = frame[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    num_bytes = (single_segment, 2, 4, 8)[descriptor >> 6]
    if not num_bytes:
        return -1
    return int.from_bytes(frame[start : start + num_bytes], "little") + (256 if num_bytes == 2 else 0)


def _codec(codec: Any, item_bytes: int) -> Any:
    # The order of bytes does not apply to single bytes, and zarr leaves it out.
    return "bytes" if item_bytes == 1 and isinstance(codec, dict) and codec.get("name") == "bytes" else codec

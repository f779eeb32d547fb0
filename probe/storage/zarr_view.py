"""A unit's files as zarr sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from probe.errors import StoreCorrupt
from probe.storage.manifest import place
from probe.storage.stored_shape import CHUNK_BYTES
from probe.storage.unit_files import UnitFiles
from probe.storage.zstd_frame import content_bytes


class ZarrView(Store):  # type: ignore[misc]
    """A store that zarr reads a unit's arrays from; holds no data of its own, and writes none."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, files: UnitFiles, prefix: str = "") -> None:
        """Show the group whose files' paths start with `prefix`."""
        super().__init__(read_only=True)
        self.files = files
        """Where the bytes are."""
        self.prefix = prefix
        """What the group's paths start with."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZarrView) and other.files is self.files and other.prefix == self.prefix

    def __str__(self) -> str:
        return "unit"

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file's bytes, or part of them; None where there is no such file."""
        path = self.prefix + key
        data = await asyncio.to_thread(self.files.read, path) if self.files.far else self.files.read(path)
        if data is None:
            return None
        if "/c/" in key and not 0 <= content_bytes(data) <= CHUNK_BYTES:
            raise StoreCorrupt(f"{place(self.prefix + key)} does not unpack to a chunk of at most {CHUNK_BYTES} bytes")
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
        return key in set(self._paths())

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: a unit that can be read is never written again."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: a unit that can be read is never written again."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Yield every path."""
        for path in list(self._paths()):
            yield path

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield every path that starts so."""
        for path in list(self._paths()):
            if path.startswith(prefix):
                yield path

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield what stands directly in a folder. Files beside the arrays are not zarr's, and are not shown."""
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        paths = set(self._paths())
        for name in sorted({path[len(prefix) :].split("/")[0] for path in paths if path.startswith(prefix)}):
            if prefix or name == "zarr.json" or f"{name}/zarr.json" in paths:
                yield name

    def _paths(self) -> Iterator[str]:
        # Groups within the group are read through views of their own.
        for path in self.files.paths():
            if path.startswith(self.prefix) and (self.prefix or not path.startswith(("layers/", "parts/"))):
                yield path[len(self.prefix) :]

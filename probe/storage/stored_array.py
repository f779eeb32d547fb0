"""One array of a unit read straight from its chunks, and no more of them than a window needs. Needs numpy alone."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
from numcodecs import Zstd

from probe.errors import StoreCorrupt
from probe.storage.durable import parse_json
from probe.storage.far import all_of
from probe.storage.manifest import place
from probe.storage.unit_files import UnitFiles
from probe.storage.zstd_frame import content_bytes

_ZSTD = Zstd()


class StoredArray:
    """An array of an opened unit, by its path. xarray costs 30 ms a read; this costs what the chunks cost."""

    def __init__(self, files: UnitFiles, path: str) -> None:
        """Read what the array is; raises KeyError where the unit has none of that name."""
        data = files.read(f"{path}/zarr.json")
        if data is None:
            raise KeyError(path)
        described = parse_json(data, f"{path}/zarr.json")
        self.path = path
        """Path of the array in the unit."""
        self.shape: tuple[int, ...] = tuple(described["shape"])
        """Size along each axis."""
        self.chunks: tuple[int, ...] = tuple(described["chunk_grid"]["configuration"]["chunk_shape"])
        """Shape of a chunk."""
        self.dims: tuple[str, ...] = tuple(described["dimension_names"])
        """The axes' names, as on the disk."""
        self.attributes: dict[str, Any] = described["attributes"]
        """Unit, definition, source, and the rest."""
        self.dtype = np.dtype(described["data_type"]).newbyteorder("<")
        """Kind of number on the disk."""
        self._files = files

    def read(self, *ranges: tuple[int, int]) -> np.ndarray[Any, Any]:
        """Return the entries in half-open ranges, one for each axis, which must lie inside the array.

        Bits of a bfloat16 come back as the float32 that they stand for. Raises StoreCorrupt where a chunk is not what
        was written.
        """
        values = np.empty([stop - start for start, stop in ranges], self.dtype)
        spans = [
            range(start // c, -(-stop // c)) if stop > start else range(0)
            for (start, stop), c in zip(ranges, self.chunks, strict=True)
        ]
        indices = list(product(*spans))
        for index, chunk in zip(indices, all_of(self._chunk, indices, far=self._files.far), strict=True):
            inside, outside = [], []
            for (start, stop), i, c in zip(ranges, index, self.chunks, strict=True):
                first, last = max(start, i * c), min(stop, (i + 1) * c)
                inside.append(slice(first - i * c, last - i * c))
                outside.append(slice(first - start, last - start))
            values[tuple(outside)] = chunk[tuple(inside)]
        if self.attributes.get("bits_of") == "bfloat16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values

    def _chunk(self, index: tuple[int, ...]) -> np.ndarray[Any, Any]:
        path = f"{self.path}/c/{'/'.join(map(str, index))}"
        data = self._files.read(path)
        size = math.prod(self.chunks) * self.dtype.itemsize
        if data is None or content_bytes(data) != size:
            raise StoreCorrupt(f"{place(path)} is missing, or does not unpack to the {size} bytes of a chunk")
        try:
            unpacked = _ZSTD.decode(data)
        except RuntimeError as error:
            raise StoreCorrupt(f"{place(path)} cannot be unpacked: {error}") from error
        return np.frombuffer(unpacked, self.dtype).reshape(self.chunks)

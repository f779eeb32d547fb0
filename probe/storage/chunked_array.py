"""One array of a unit, written chunk by chunk as zarr v3 lays it out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any, Protocol

import numpy as np
from numcodecs import Zstd

from probe.errors import UsageError
from probe.storage.array import Array
from probe.storage.durable import canonical_json
from probe.storage.stored_shape import CHUNK_BYTES, CODECS

# Through zarr itself a small array costs 5 ms, and a unit has dozens.
_ZSTD = Zstd(**CODECS[1]["configuration"])


class WritableFiles(Protocol):
    """Where the bytes of a unit go."""

    def write(self, path: str, data: bytes) -> None:
        """Add a file or replace it."""


class ChunkedArray:
    """Writes chunks in any order, each once; `finish` says how large the array came to be and fills the gaps."""

    def __init__(
        self, files: WritableFiles, name: str, like: Array, dims: tuple[str, ...], chunks: tuple[int, ...]
    ) -> None:
        self.chunks = chunks
        """Shape of a chunk."""
        self._files = files
        self._name = name
        self._like = like
        self._dims = dims
        self._dtype = like.values.dtype.newbyteorder("<")
        self._written: set[tuple[int, ...]] = set()

    def write(self, first: tuple[int, ...], block: np.ndarray[Any, Any]) -> None:
        """Write a block whose axes start at the chunks `first`; axes that it does not name start at 0."""
        first = (*first, *(0 for _ in range(block.ndim - len(first))))
        counts = [-(-size // chunk) for size, chunk in zip(block.shape, self.chunks, strict=True)]
        for index in product(*map(range, counts)):
            part = block[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, self.chunks, strict=True))]
            if part.shape != self.chunks:
                # What stands beyond the array's edge is never read, so any value will do where none is missing.
                whole = np.full(self.chunks, fill_value(self._dtype) or 0, self._dtype)
                whole[tuple(map(slice, part.shape))] = part
                part = whole
            self._put(tuple(map(sum, zip(first, index, strict=True))), self._encoded(part))

    def finish(self, shape: tuple[int, ...]) -> None:
        """Write the fill value wherever no chunk was written, and then what the array is.

        Raises UsageError where there are gaps, and the kind of number has none to spare for a missing one.
        """
        counts = [-(-size // chunk) for size, chunk in zip(shape, self.chunks, strict=True)]
        gaps = [index for index in product(*map(range, counts)) if index not in self._written]
        if gaps:
            gap = self._encoded(np.full(self.chunks, missing(self._dtype, self._name), self._dtype))
            for index in gaps:
                self._put(index, gap)
        codecs = CODECS if self._dtype.itemsize > 1 else [{"name": "bytes"}, *CODECS[1:]]
        fill = fill_value(self._dtype)
        extra: dict[str, Any] = {} if self._like.block_tokens is None else {"block_tokens": self._like.block_tokens}
        extra |= {"bits_of": self._like.bits_of} if self._like.bits_of else {}
        described = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": self._dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunks)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": ("NaN" if self._dtype.kind == "f" else fill) if fill is not None else 0,
            "codecs": codecs,
            "attributes": {
                "unit": self._like.unit,
                "definition": self._like.definition,
                "source": self._like.source,
                "merge": self._like.merge,
                **extra,
            },
            "dimension_names": list(self._dims),
            "storage_transformers": [],
        }
        if self._dtype.kind == "b":
            described["fill_value"] = False
        self._files.write(f"{self._name}/zarr.json", canonical_json(described).encode())

    def _encoded(self, chunk: np.ndarray[Any, Any]) -> bytes:
        return bytes(_ZSTD.encode(np.ascontiguousarray(chunk, self._dtype)))

    def _put(self, index: tuple[int, ...], data: bytes) -> None:
        self._written.add(index)
        self._files.write(f"{self._name}/c/{'/'.join(map(str, index))}", data)


def fill_value(dtype: np.dtype[Any]) -> float | int | None:
    """Return what stands for a missing value; None for kinds of number that have none to spare."""
    return {"f": float("nan"), "i": -1}.get(dtype.kind)


def missing(dtype: np.dtype[Any], name: str) -> float | int:
    """Return what stands for a missing value; raises UsageError, naming the array, where there is no such value."""
    value = fill_value(dtype)
    if value is None:
        raise UsageError(
            f"array {name!r} is {dtype.name}, which cannot say that a layer or a head is missing; take a signed one"
        )
    return value


def write_whole(files: WritableFiles, name: str, array: Array, chunks: Mapping[str, int] | None = None) -> None:
    """Write an array in one go; `chunks` says how many entries of an axis go into one chunk, where not all."""
    sizes = [min(n, (chunks or {}).get(dim, n)) for dim, n in zip(array.dims, array.values.shape, strict=True)]
    chunked = ChunkedArray(files, name, array, array.stored_dims, chunk_shape(tuple(sizes), array.values.itemsize))
    chunked.write((), array.values)
    chunked.finish(array.values.shape)


def chunk_shape(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    """Return the whole shape, cut along its leading axes where that would make a chunk too large."""
    chunks = [max(1, size) for size in shape]
    for axis in range(len(chunks)):
        rest = math.prod(chunks[axis + 1 :]) * item_bytes
        chunks[axis] = max(1, min(chunks[axis], CHUNK_BYTES // rest))
        if chunks[axis] * rest <= CHUNK_BYTES:
            break
    return tuple(chunks)

"""One array of a unit that comes in parts along an axis, and of which only the last chunk's worth is in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from probe.errors import UsageError
from probe.storage.array import Array
from probe.storage.chunked_array import ChunkedArray, WritableFiles, missing, write_whole
from probe.storage.layered_array import PADDED, LayeredArray

CHUNK_BYTES: Final = 512 * 2**10
"""Uncompressed size of the chunks that a growing array is written in: what waits in memory for each, and what a reader
of a few entries has to unpack."""


class GrowingArray:
    """An array that grows along `axis`, alone or with a `layer` axis in front, each layer at its own pace.

    A chunk is written once, when it is full; the rest waits. What never fills a chunk is written as if it had come
    whole, so that short prompts make few files.
    """

    def __init__(
        self, files: WritableFiles, name: str, like: Array, axis: str, *, layered: bool, split: tuple[str, ...] = ()
    ) -> None:
        """Prepare; along the axes in `split` every index gets chunks of its own."""
        self.name = name
        """Name of the array in the unit."""
        self.dims = like.dims
        """Axes of what is appended."""
        self.axis = axis
        """The axis that grows."""
        # Without the values, which are the caller's.
        self._like = dataclasses.replace(like, values=like.values[:0].copy(), coordinates={})
        self._files = files
        self._layered = layered
        self._along = like.dims.index(axis)
        self._dtype = like.values.dtype.newbyteorder("=")
        self._chunk = [1 if dim in split else max(1, n) for dim, n in zip(like.dims, like.values.shape, strict=True)]
        row_bytes: int = self._dtype.itemsize * math.prod(n for i, n in enumerate(self._chunk) if i != self._along)
        # A power of two, so that a window aligned to one reads few chunks.
        self._length: int = 1 << max(0, (CHUNK_BYTES // max(1, row_bytes)).bit_length() - 1)
        self._chunk[self._along] = self._length
        self._parts: dict[int, list[np.ndarray[Any, Any]]] = {}
        self._waiting: dict[int, int] = {}
        self._written: dict[int, int] = {}
        self._shape = [0 if i == self._along else n for i, n in enumerate(like.values.shape)]
        self._width: dict[int, tuple[int, ...]] = {}
        self._chunked: ChunkedArray | None = None

    @property
    def stored_dims(self) -> tuple[str, ...]:
        """The axes' names on the disk."""
        return self._like.stored_dims

    @property
    def num_layers(self) -> int:
        """One more than the last layer that something was appended to."""
        return max(self._waiting, default=-1) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one layer, the largest so far."""
        lengths = [self.length(index) for index in self._waiting]
        return tuple(max(lengths, default=0) if i == self._along else n for i, n in enumerate(self._shape))

    def length(self, index: int) -> int:
        """Return how many entries along the axis a layer has so far."""
        return self._written.get(index, 0) * self._length + self._waiting.get(index, 0)

    def append(self, index: int, array: Array) -> None:
        """Add the next part of one layer (0 where there is no layer axis); UsageError where it is not like the last."""
        if array.dims != self.dims or array.values.dtype.newbyteorder("=") != self._dtype:
            raise UsageError(
                f"array {self.name!r}: layer index {index} is {array.values.dtype} over {', '.join(array.dims)}, "
                f"what came before is {self._dtype} over {', '.join(self.dims)}"
            )
        for i, (dim, size, before) in enumerate(zip(self.dims, array.values.shape, self._shape, strict=True)):
            if i != self._along and size != (self._width[index][i] if index in self._width else before):
                if dim not in PADDED or not self._layered or index in self._width:
                    raise UsageError(
                        f"array {self.name!r}: layer index {index} has {size} along {dim!r}, those before {before}"
                    )
                missing(self._dtype, self.name)
                self._shape[i] = max(size, before)
        self._width.setdefault(index, array.values.shape)
        # A copy: the caller may fill its buffer anew, or hold a larger one behind this view.
        self._parts.setdefault(index, []).append(np.array(array.values, dtype=self._dtype))
        self._waiting[index] = self._waiting.get(index, 0) + array.values.shape[self._along]
        if self._waiting[index] >= self._length:
            self._flush(index)

    def finish(self, num_layers: int, sizes: Mapping[str, int]) -> None:
        """Write what still waits, and the fill value for layers or heads that are missing."""
        lengths = {self.length(index) for index in self._waiting}
        if len(lengths) > 1:
            raise UsageError(f"array {self.name!r}: its layers end at different lengths along {self.axis!r}")
        shape = self.shape
        if self._chunked is None:
            self._write_as_whole(num_layers, sizes)
            return
        for index in list(self._parts):
            self._write(index, self._joined(index))
        padded = [max(n, sizes.get(dim, 0)) if self._layered else n for dim, n in zip(self.dims, shape, strict=True)]
        if tuple(padded) != shape:
            missing(self._dtype, self.name)
        self._chunked.finish((num_layers, *padded) if self._layered else tuple(padded))

    def _write_as_whole(self, num_layers: int, sizes: Mapping[str, int]) -> None:
        joined = {index: dataclasses.replace(self._like, values=self._joined(index)) for index in sorted(self._parts)}
        if not self._layered:
            write_whole(self._files, self.name, joined[0])
            return
        first, *_ = joined.values()
        layered = LayeredArray(self._files, self.name, first)
        for index in list(joined):
            layered.put(index, joined.pop(index))
        layered.finish(num_layers, sizes)

    def _flush(self, index: int) -> None:
        values = self._joined(index)
        whole = values.shape[self._along] // self._length
        ready, rest = np.split(values, [whole * self._length], self._along)
        self._write(index, ready)
        self._written[index] = self._written.get(index, 0) + whole
        self._waiting[index] = rest.shape[self._along]
        self._parts[index] = [rest.copy()] if rest.shape[self._along] else []

    def _write(self, index: int, values: np.ndarray[Any, Any]) -> None:
        if not values.shape[self._along]:
            return
        if self._chunked is None:
            front: tuple[str, ...] = ("layer",) if self._layered else ()
            chunks = (*((1,) if self._layered else ()), *self._chunk)
            self._chunked = ChunkedArray(self._files, self.name, self._like, (*front, *self._like.stored_dims), chunks)
        first = tuple(self._written.get(index, 0) if i == self._along else 0 for i in range(values.ndim))
        block = values[None] if self._layered else values
        self._chunked.write((index, *first) if self._layered else first, block)

    def _joined(self, index: int) -> np.ndarray[Any, Any]:
        parts = self._parts.pop(index, [])
        if not parts:
            return np.empty([0 if i == self._along else n for i, n in enumerate(self._shape)], self._dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, self._along)

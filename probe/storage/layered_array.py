"""One array of a unit, on its way to the disk layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from probe.errors import UsageError
from probe.storage.array import Array
from probe.storage.chunked_array import ChunkedArray, WritableFiles, chunk_shape, missing

PADDED: Final = ("head", "kv_head", "state_head", "channel", "component")
"""Axes in which layers may differ: a layer that has fewer is filled up with NaN, or -1."""

_GROUP_BYTES: Final = 2**20
"""Layers are put into one chunk up to this size, so that small arrays do not make a file a layer."""


class LayeredArray:
    """An array with a leading `layer` axis. Holds at most one chunk's layers in memory while they come in order."""

    def __init__(self, files: WritableFiles, name: str, first: Array) -> None:
        self.name = name
        """Name of the array in the unit."""
        self.dims = first.dims
        """Axes of one layer."""
        self._files = files
        self._first = first
        self._dtype = first.values.dtype.newbyteorder("=")
        self._shape = list(first.values.shape)
        self._layers_per_chunk = max(1, _GROUP_BYTES // max(1, first.values.nbytes))
        self._pending: dict[int, dict[int, np.ndarray[Any, Any]]] = {}
        self._chunked: ChunkedArray | None = None
        self._done: set[int] = set()

    @property
    def stored_dims(self) -> tuple[str, ...]:
        """The axes' names on the disk."""
        return self._first.stored_dims

    @property
    def num_layers(self) -> int:
        """One more than the last layer that was put."""
        return max([*self._done, *(index for group in self._pending.values() for index in group)]) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one layer, the largest so far."""
        return tuple(self._shape)

    def put(self, index: int, array: Array) -> None:
        """Take one layer; raises UsageError where it was put before, or is not like the layers before it."""
        number = index // self._layers_per_chunk
        if index in self._done or index in self._pending.get(number, {}):
            raise UsageError(f"array {self.name!r}: layer index {index} was written already")
        if array.dims != self.dims or array.values.dtype.newbyteorder("=") != self._dtype:
            raise UsageError(
                f"array {self.name!r}: layer index {index} is {array.values.dtype} over {', '.join(array.dims)}, "
                f"the layers before it are {self._dtype} over {', '.join(self.dims)}"
            )
        for dim, size, before in zip(self.dims, array.values.shape, self._shape, strict=True):
            if size != before and dim not in PADDED:
                raise UsageError(
                    f"array {self.name!r}: layer index {index} has {size} along {dim!r}, those before {before}"
                )
            if size != before:
                missing(self._dtype, self.name)
        self._shape = list(map(max, self._shape, array.values.shape))
        # A copy: the caller may fill its buffer anew before this chunk is whole.
        self._pending.setdefault(number, {})[index] = np.array(array.values, dtype=self._dtype)
        if len(self._pending[number]) == self._layers_per_chunk:
            self._flush(number, self._layers_per_chunk)

    def finish(self, num_layers: int, sizes: Mapping[str, int]) -> None:
        """Write what is still in memory, and the fill value wherever no layer was put, or none of these sizes."""
        shape = [max(size, sizes.get(dim, 0)) for dim, size in zip(self.dims, self._shape, strict=True)]
        if shape != self._shape:
            missing(self._dtype, self.name)
        self._shape = shape
        if self._chunked is None:
            self._layers_per_chunk = min(self._layers_per_chunk, num_layers)
        for number in sorted(self._pending):
            self._flush(number, min(self._layers_per_chunk, num_layers - number * self._layers_per_chunk))
        assert self._chunked is not None
        self._chunked.finish((num_layers, *self._shape))

    def _flush(self, number: int, num_layers: int) -> None:
        layers = self._pending.pop(number)
        start = number * self._layers_per_chunk
        if len(layers) == num_layers and all(layer.shape == self.shape for layer in layers.values()):
            block = np.stack([layers[index] for index in range(start, start + num_layers)])
        else:
            block = np.full((num_layers, *self._shape), missing(self._dtype, self.name), self._dtype)
            for index, layer in layers.items():
                block[index - start][tuple(map(slice, layer.shape))] = layer
        if self._chunked is None:
            chunks = (self._layers_per_chunk, *chunk_shape(self.shape, self._dtype.itemsize * self._layers_per_chunk))
            self._chunked = ChunkedArray(
                self._files, self.name, self._first, ("layer", *self._first.stored_dims), chunks
            )
        self._chunked.write((number,), block)
        self._done.update(layers)

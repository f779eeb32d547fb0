"""One array of a unit, on its way to the disk layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import zarr
from zarr.codecs import BytesCodec, ZstdCodec

from probe.array import Array
from probe.errors import UsageError
from probe.stored_shape import CHUNK_BYTES
from probe.zarr_view import ZarrView

PADDED: Final = ("head", "kv_head", "channel")
"""Axes in which layers may differ: a layer that has fewer is filled up with NaN, or -1."""

_GROUP_BYTES: Final = 2**20
"""Layers are put into one chunk up to this size, so that small arrays do not make a file a layer."""


class LayeredArray:
    """An array with a leading `layer` axis. Holds at most one chunk's layers in memory while they come in order."""

    def __init__(self, view: ZarrView, name: str, first: Array) -> None:
        self.name = name
        """Name of the array in the unit."""
        self.dims = first.dims
        """Axes of one layer."""
        self._view = view
        self._first = first
        self._dtype = first.values.dtype.newbyteorder("=")
        self._shape = list(first.values.shape)
        self._layers_per_chunk = max(1, _GROUP_BYTES // max(1, first.values.nbytes))
        self._pending: dict[int, dict[int, np.ndarray[Any, Any]]] = {}
        self._zarr: Any = None
        self._done: set[int] = set()

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
        group = self._pending.setdefault(index // self._layers_per_chunk, {})
        if index in self._done or index in group:
            raise UsageError(f"array {self.name!r}: layer index {index} was written already")
        if array.dims != self.dims or array.values.dtype.newbyteorder("=") != self._dtype:
            raise UsageError(
                f"array {self.name!r}: layer index {index} is {array.values.dtype} over {', '.join(array.dims)}, "
                f"the layers before it are {self._dtype} over {', '.join(self.dims)}"
            )
        for axis, dim in enumerate(self.dims):
            size = array.values.shape[axis]
            if size != self._shape[axis] and dim not in PADDED:
                raise UsageError(
                    f"array {self.name!r}: layer index {index} has {size} along {dim!r}, "
                    f"those before {self._shape[axis]}"
                )
            self._shape[axis] = max(self._shape[axis], size)
        # A copy: the caller may fill its buffer anew before this chunk is whole.
        group[index] = np.array(array.values, dtype=self._dtype)
        if len(group) == self._layers_per_chunk:
            self._flush(index // self._layers_per_chunk)

    def finish(self, num_layers: int, sizes: Mapping[str, int]) -> None:
        """Write what is still in memory, and the fill value wherever no layer was put, or none of these sizes."""
        self._shape = [max(size, sizes.get(dim, 0)) for dim, size in zip(self.dims, self._shape, strict=True)]
        if self._zarr is None:
            self._layers_per_chunk = min(self._layers_per_chunk, num_layers)
        for number in range(-(-num_layers // self._layers_per_chunk)):
            first = number * self._layers_per_chunk
            if not self._done.intersection(range(first, first + self._layers_per_chunk)):
                self._pending.setdefault(number, {})
                self._flush(number, num_layers)
        self._resize((num_layers, *self._shape))

    def _flush(self, number: int, num_layers: int | None = None) -> None:
        layers = self._pending.pop(number)
        start = number * self._layers_per_chunk
        stop = min(start + self._layers_per_chunk, num_layers or start + self._layers_per_chunk)
        whole = (stop - start, *self._shape)
        if len(layers) == stop - start and all(layer.shape == whole[1:] for layer in layers.values()):
            block = np.stack([layers[index] for index in range(start, stop)])
        else:
            block = np.full(whole, self._fill(), self._dtype)
            for index, layer in layers.items():
                block[index - start][tuple(map(slice, layer.shape))] = layer
        if self._zarr is None:
            chunks = (self._layers_per_chunk, *_chunk_shape(whole[1:], self._dtype.itemsize * self._layers_per_chunk))
            self._zarr = create(self._view, self.name, self._first, ("layer", *self.dims), whole, chunks)
        self._resize((max(stop, self._zarr.shape[0]), *self._shape))
        self._zarr[start:stop] = block
        self._done.update(layers)

    def _resize(self, shape: tuple[int, ...]) -> None:
        old = tuple(self._zarr.shape)
        if shape == old:
            return
        self._zarr.resize(shape)
        for axis in range(1, len(shape)):
            if shape[axis] > old[axis]:
                # Chunks that only now come to be inside the array must be there, or they would look lost.
                for start in range(0, old[0], self._layers_per_chunk):
                    corner = [slice(None)] * len(shape)
                    corner[0], corner[axis] = slice(start, start + self._layers_per_chunk), slice(old[axis], None)
                    self._zarr[tuple(corner)] = self._fill()

    def _fill(self) -> Any:
        return fill_value(self._dtype, self.name)


def fill_value(dtype: np.dtype[Any], name: str) -> Any:
    """Return what stands for a missing value; raises UsageError for kinds of number that have none to spare."""
    if dtype.kind == "f":
        return float("nan")
    if dtype.kind == "i":
        return -1
    raise UsageError(
        f"array {name!r} is {dtype}, which cannot say that a layer or a head is missing; take a signed one"
    )


def create(
    view: ZarrView, name: str, array: Array, dims: tuple[str, ...], shape: tuple[int, ...], chunks: tuple[int, ...]
) -> Any:
    """Make an empty zarr array with this toolkit's codecs, names of axes and attributes."""
    dtype = array.values.dtype.newbyteorder("=")
    return zarr.create_array(
        view,
        name=name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        serializer=BytesCodec(),
        compressors=ZstdCodec(level=1, checksum=True),
        filters=None,
        fill_value=fill_value(dtype, name) if dtype.kind in "fi" else 0,
        dimension_names=dims,
        attributes={
            "unit": array.unit,
            "definition": array.definition,
            "source": array.source,
            "merge": array.merge,
        },
        # A chunk that is not written because it is all fill value would look like a lost one.
        config={"write_empty_chunks": True},
    )


def write_whole(view: ZarrView, name: str, array: Array) -> None:
    """Write an array in one go."""
    values = array.values
    chunks = _chunk_shape(values.shape, values.dtype.itemsize)
    stored = create(view, name, array, array.dims, values.shape, chunks)
    if values.size:
        stored[...] = values.astype(values.dtype.newbyteorder("="), copy=False)


def _chunk_shape(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    chunks = [max(1, size) for size in shape]
    for axis in range(len(chunks)):
        rest = math.prod(chunks[axis + 1 :]) * item_bytes
        chunks[axis] = max(1, min(chunks[axis], CHUNK_BYTES // max(1, rest)))
        if math.prod(chunks) * item_bytes <= CHUNK_BYTES:
            break
    return tuple(chunks)

"""The arrays of one part of a unit: those with a layer axis, those without, and what is kept of single layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from probe.errors import UsageError
from probe.storage.array import Array
from probe.storage.chunked_array import WritableFiles, write_whole
from probe.storage.durable import canonical_json
from probe.storage.group_writer import GroupWriter, Shape, grow_coordinates
from probe.storage.growing_array import GrowingArray
from probe.storage.layered_array import LayeredArray

_COUNTS: Final = {"head": "num_heads", "kv_head": "num_kv_heads", "state_head": "num_state_heads"}


class LayeredGroup:
    """A zarr group of arrays whose layers come one after the other or grow side by side."""

    def __init__(self, files: WritableFiles, prefix: str, unit: str, layers: Sequence[int] | None = None) -> None:
        self._files = files
        self._prefix = prefix
        self._unit = unit
        self._layers = None if layers is None else [int(layer) for layer in layers]
        self._layered: dict[str, LayeredArray] = {}
        self._growing: dict[str, GrowingArray] = {}
        self._group = GroupWriter(files, prefix, unit)
        self._of_layer: dict[int, GroupWriter] = {}
        self._counts: dict[str, dict[int, int]] = {name: {} for name in _COUNTS.values()}

    def write_layer(self, layer: int, arrays: Mapping[str, Array]) -> None:
        """Write one layer of some arrays; a layer's arrays may come in several calls, layers in any order.

        Layers may differ in their number of heads and in channels, and an array may lack layers: it is filled up with
        NaN, or -1. Raises UsageError where an array does not go with what was written before.
        """
        index = self._index(layer)
        for name, array in arrays.items():
            self._check_layered(name, array, name in self._layered)
            self._group.coordinates.put(name, array.stored_coordinates)
            self._count(layer, index, name, array)
            if name not in self._layered:
                self._layered[name] = LayeredArray(self._files, f"{self._prefix}{name}", array)
            self._layered[name].put(index, array)

    def append_layer(self, layer: int, arrays: Mapping[str, Array], axis: str) -> None:
        """Add the next part along `axis` of one layer of some arrays; no more than the last chunk stays in memory.

        Nothing is said of how the parts were cut: the array that is read is their concatenation. Layers may come in any
        order and must end at the same length.
        """
        index = self._index(layer)
        for name, array in arrays.items():
            self._check_layered(name, array, name in self._growing)
            self._count(layer, index, name, array)
            if axis in array.dims and name not in self._growing:
                self._growing[name] = GrowingArray(self._files, f"{self._prefix}{name}", array, axis, layered=True)
            length = self._growing[name].length(index) if name in self._growing else 0
            grow_coordinates(self._group.coordinates, name, array, axis, length)
            self._growing[name].append(index, array)

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Write arrays whole: those without a layer axis, or with all their layers at once."""
        for name in arrays:
            self._check_name(name, name in self._layered or name in self._growing)
        self._group.write(arrays)

    def append(self, arrays: Mapping[str, Array], axis: str) -> None:
        """Add the next part along `axis` of arrays without a layer axis."""
        for name in arrays:
            self._check_name(name, name in self._layered or name in self._growing)
        self._group.append(arrays, axis)

    def of_layer(self, layer: int) -> GroupWriter:
        """Return the group of what is kept of this layer alone; `Trace.layer` reads it."""
        if layer < 0:
            raise UsageError(f"there is no layer {layer}")
        if layer not in self._of_layer:
            self._of_layer[layer] = GroupWriter(self._files, f"{self._prefix}layers/{layer}/", self._unit)
        return self._of_layer[layer]

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Write what is left, and what the group is; raises UsageError where sizes along an axis differ."""
        layered: dict[str, LayeredArray | GrowingArray] = {**self._layered, **self._growing}
        num_layers = max((array.num_layers for array in layered.values()), default=0)
        num_layers = num_layers if self._layers is None else len(self._layers)
        sizes: dict[str, int] = {"layer": num_layers} if layered else {}
        for array in layered.values():
            for dim, size in zip(array.dims, array.shape, strict=True):
                if dim in _COUNTS:
                    sizes[dim] = max(size, sizes.get(dim, 0))
        shapes: dict[str, Shape] = {}
        for name, array in layered.items():
            array.finish(num_layers, sizes)
            shapes[name] = array.stored_dims, _padded(array, sizes)
        if layered:
            layers = np.arange(num_layers) if self._layers is None else np.array(self._layers)
            self._group.coordinates.put("layer", {"layer": layers})
        for name, by_layer in self._counts.items():
            if by_layer:
                counts = np.array([by_layer.get(index, -1) for index in range(num_layers)], np.int32)
                definition = "how many this layer has; what stands beyond is filling; -1 where nothing was written"
                write_whole(self._files, f"{self._prefix}{name}", Array(("layer",), counts, definition=definition))
        self._group.finish(shapes, sizes, attributes)
        for layer, group in self._of_layer.items():
            group.finish({}, {}, {"layer": layer})
        if self._of_layer:
            write_group(self._files, f"{self._prefix}layers/", "what was kept of single layers")

    def clear(self) -> None:
        """Let go of what was not written."""
        self._layered.clear()
        self._growing.clear()

    def _index(self, layer: int) -> int:
        if self._layers is None:
            if layer < 0:
                raise UsageError(f"there is no layer {layer}")
            return layer
        if layer not in self._layers:
            raise UsageError(f"layer {layer} is not among the layers of unit {self._unit!r}: {self._layers}")
        return self._layers.index(layer)

    def _check_layered(self, name: str, array: Array, known: bool) -> None:
        array.check(name)
        self._check_name(name, name in self._group or (not known and (name in self._layered or name in self._growing)))
        if "layer" in array.dims:
            raise UsageError(f"array {name!r} has a layer axis of its own; use `write`")

    def _check_name(self, name: str, taken: bool) -> None:
        if taken or name in _COUNTS.values():
            raise UsageError(f"array {name!r} of unit {self._unit!r} was written already, or is the writer's own")

    def _count(self, layer: int, index: int, name: str, array: Array) -> None:
        for dim, size in zip(array.dims, array.values.shape, strict=True):
            if dim in _COUNTS and self._counts[_COUNTS[dim]].setdefault(index, size) != size:
                raise UsageError(
                    f"array {name!r} has {size} along {dim!r} in layer {layer}, "
                    f"an array before it {self._counts[_COUNTS[dim]][index]}"
                )


def write_group(files: WritableFiles, prefix: str, holds: str) -> None:
    """Write what a group is that holds other groups alone."""
    parent = {"zarr_format": 3, "node_type": "group", "attributes": {"holds": holds}}
    files.write(f"{prefix}zarr.json", canonical_json(parent).encode())


def _padded(array: LayeredArray | GrowingArray, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(max(n, sizes.get(dim, 0)) for dim, n in zip(array.dims, array.shape, strict=True))

"""Writes one zarr group of a unit: its arrays whole or as they grow, and the labels along their axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probe.errors import UsageError
from probe.storage.array import Array
from probe.storage.chunked_array import WritableFiles, write_whole
from probe.storage.coordinates import Coordinates
from probe.storage.durable import canonical_json
from probe.storage.growing_array import GrowingArray

Shape = tuple[tuple[str, ...], tuple[int, ...]]


class GroupWriter:
    """One group's arrays on their way to the disk. Sizes and labels of an axis are the same in all of them."""

    def __init__(self, files: WritableFiles, prefix: str, unit: str) -> None:
        self.coordinates = Coordinates()
        """The labels along the axes."""
        self._files = files
        self._prefix = prefix
        self._unit = unit
        self._whole: dict[str, Shape] = {}
        self._growing: dict[str, GrowingArray] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._whole or name in self._growing

    def write(self, arrays: Mapping[str, Array], chunks: Mapping[str, int] | None = None) -> None:
        """Write arrays whole; `chunks` says how many entries of an axis go into one chunk, where not all."""
        for name, array in arrays.items():
            self._check(name, array, new=True)
            self.coordinates.put(name, array.stored_coordinates)
            self._whole[name] = (array.stored_dims, array.values.shape)
            write_whole(self._files, f"{self._prefix}{name}", array, chunks)

    def append(self, arrays: Mapping[str, Array], axis: str, split: tuple[str, ...] = ()) -> None:
        """Add the next part along `axis` of arrays that nothing is said of beyond these parts."""
        for name, array in arrays.items():
            self._check(name, array, new=name not in self._growing)
            if name not in self._growing:
                self._growing[name] = GrowingArray(
                    self._files, f"{self._prefix}{name}", array, axis, layered=False, split=split
                )
            grow_coordinates(self.coordinates, name, array, axis, self._growing[name].length(0))
            self._growing[name].append(0, array)

    def finish(self, others: Mapping[str, Shape], sizes: Mapping[str, int], attributes: Mapping[str, Any]) -> None:
        """Write what is left, the coordinates, and what the group is; `others` are arrays that somebody else wrote.

        Raises UsageError where two arrays have different sizes along an axis.
        """
        for growing in self._growing.values():
            growing.finish(0, {})
        grown = {name: (growing.stored_dims, growing.shape) for name, growing in self._growing.items()}
        found = dict(sizes)
        for name, (dims, shape) in {**others, **grown, **self._whole}.items():
            for dim, size in zip(dims, shape, strict=True):
                if found.setdefault(dim, size) != size:
                    raise UsageError(f"array {name!r} has {size} along {dim!r}, another array {found[dim]}")
        labels = {}
        for dim, values in self.coordinates.finish().items():
            if values.dtype.kind == "U":
                labels[dim] = values.tolist()
            else:
                write_whole(self._files, f"{self._prefix}{dim}", Array((dim,), values))
        group = {"zarr_format": 3, "node_type": "group", "attributes": {**attributes, "labels": labels}}
        self._files.write(f"{self._prefix}zarr.json", canonical_json(group).encode())

    def _check(self, name: str, array: Array, *, new: bool) -> None:
        array.check(name)
        if name in self._whole or (new and name in self):
            raise UsageError(f"array {name!r} of unit {self._unit!r} was written already, or is the writer's own")


def grow_coordinates(coordinates: Coordinates, name: str, array: Array, axis: str, length: int) -> None:
    """Take the coordinates of a part of an array of which `length` entries along `axis` came before."""
    if axis not in array.dims:
        raise UsageError(f"array {name!r} cannot grow along {axis!r}: its axes are {', '.join(array.dims)}")
    stored = dict(zip(array.dims, array.stored_dims, strict=True))[axis]
    whole = array.stored_coordinates
    if stored in whole:
        coordinates.grow(name, stored, length, whole.pop(stored))
    coordinates.put(name, whole)

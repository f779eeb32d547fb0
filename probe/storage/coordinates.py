"""The labels along the axes of one group of arrays: one set for each axis, whichever array brings them."""

from __future__ import annotations

from typing import Any

import numpy as np

from probe.errors import UsageError


class Coordinates:
    """Collects coordinates, whole or as an axis grows, and holds those of different arrays against one another."""

    def __init__(self) -> None:
        self._whole: dict[str, np.ndarray[Any, Any]] = {}
        self._grown: dict[str, _Grown] = {}

    def put(self, name: str, coordinates: dict[str, np.ndarray[Any, Any]]) -> None:
        """Take an array's coordinates, by axis; raises UsageError where an array before it had others."""
        for dim, values in coordinates.items():
            if dim in self._whole and not np.array_equal(self._whole[dim], values):
                raise UsageError(f"array {name!r} has another coordinate for {dim!r} than an array before it")
            self._whole[dim] = values

    def grow(self, name: str, dim: str, start: int, values: np.ndarray[Any, Any]) -> None:
        """Take the coordinate of a part whose first entry is the `start`-th along the axis."""
        if not self._grown.setdefault(dim, _Grown(values.dtype)).put(start, values):
            raise UsageError(f"array {name!r} has another coordinate for {dim!r} than an array before it")

    def finish(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return every coordinate; raises UsageError where two arrays' differ."""
        for dim, grown in self._grown.items():
            self.put("which came in parts", {dim: grown.values})
        return dict(self._whole)


class _Grown:
    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._room = np.empty(0, dtype)
        self._length = 0

    @property
    def values(self) -> np.ndarray[Any, Any]:
        return self._room[: self._length]

    def put(self, start: int, values: np.ndarray[Any, Any]) -> bool:
        stop, known = start + len(values), self._length
        if start > known or not np.array_equal(self._room[start : min(stop, known)], values[: max(0, known - start)]):
            return False
        if stop > len(self._room):
            self._room = np.concatenate([self.values, np.empty(max(stop, 2 * known) - known, self._room.dtype)])
        self._room[start:stop] = values
        self._length = max(known, stop)
        return True

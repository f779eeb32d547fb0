"""What is handed over to be stored: an array with named axes and what its numbers mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from probe.axes import AXES
from probe.errors import UsageError

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")


@dataclass(frozen=True, eq=False)
class Array:
    """Values with the names of their axes, their unit, and the definition behind them."""

    dims: tuple[str, ...]
    """Names of the axes, all from `probe.axes.AXES`."""
    values: np.ndarray[Any, Any]
    """Booleans, integers or floats. A missing integer is -1, a missing float NaN."""
    unit: str = ""
    """Unit of the values (`nats`, `probability`, `tokens`); empty for a pure number."""
    definition: str = ""
    """One sentence or formula that defines the values."""
    source: str = ""
    """Paper and section, or `this toolkit's own`."""
    coordinates: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    """Labels along some of the axes, by axis: numbers, or strings such as span names."""
    merge: str = ""
    """How values of parts combine (`sum`, `maximum`, `none`, …)."""

    def check(self, name: str) -> None:
        """Raise UsageError, naming the array, where it could not be stored or read back as what it is."""
        if not _NAME.fullmatch(name) or name in AXES:
            raise UsageError(f"{name!r} cannot name an array: a letter, then letters, digits and _, and not an axis")
        if len(set(self.dims)) != len(self.dims):
            raise UsageError(f"array {name!r} names an axis twice: {', '.join(self.dims)}")
        for dim in (*self.dims, *self.coordinates):
            if dim not in AXES:
                raise UsageError(f"array {name!r}: {dim!r} is not an axis; axes are {', '.join(AXES)}")
        if not self.dims:
            raise UsageError(f"array {name!r} has no axis; a single number belongs in the outcome or the facts")
        if self.values.ndim != len(self.dims):
            raise UsageError(
                f"array {name!r} has {self.values.ndim} axes, but {len(self.dims)} names: {', '.join(self.dims)}"
            )
        if self.values.dtype.kind not in "biuf" or self.values.dtype.itemsize > 8:
            raise UsageError(f"array {name!r} holds {self.values.dtype}; booleans, integers and floats can be stored")
        for dim, labels in self.coordinates.items():
            size = self.values.shape[self.dims.index(dim)] if dim in self.dims else None
            if np.ndim(labels) != 1 or len(labels) != size or np.asarray(labels).dtype.kind not in "iufU":
                raise UsageError(
                    f"array {name!r}: the coordinate of {dim!r} must be {size} numbers or strings in a row"
                )

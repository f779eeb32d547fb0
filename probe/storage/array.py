"""What is handed over to be stored: an array with named axes and what its numbers mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from probe.axes import AXES
from probe.errors import UsageError
from probe.storage.block_axes import BLOCK_AXES, stored_dim

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")

_RESERVED: Final = re.compile(rf"layers|({'|'.join(BLOCK_AXES)})_[0-9]+")


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
    """How values of parts combine (`sum`, `max`, `concatenate`, …)."""
    block_tokens: int | None = None
    """Positions in a block, where an axis is one of blocks."""
    bits_of: str = ""
    """`bfloat16` where the values are the bits of such numbers, which numpy does not have, as 16-bit integers."""

    @property
    def stored_dims(self) -> tuple[str, ...]:
        """The axes' names on the disk: one of blocks carries its size, `query_block_512`, so that sizes may differ."""
        return tuple(stored_dim(dim, self.block_tokens) for dim in self.dims)

    @property
    def stored_coordinates(self) -> dict[str, np.ndarray[Any, Any]]:
        """The coordinates by the axes' names on the disk."""
        return {stored_dim(dim, self.block_tokens): np.asarray(labels) for dim, labels in self.coordinates.items()}

    def check(self, name: str) -> None:
        """Raise UsageError, naming the array, where it could not be stored or read back as what it is."""
        if not _NAME.fullmatch(name) or name in AXES or _RESERVED.fullmatch(name):
            raise UsageError(f"{name!r} cannot name an array: a letter, then letters, digits and _, and not an axis")
        if self.block_tokens is not None and self.block_tokens < 1:
            raise UsageError(f"array {name!r}: a block has at least 1 position, not {self.block_tokens}")
        if self.bits_of not in ("", "bfloat16") or (self.bits_of and self.values.dtype != np.uint16):
            raise UsageError(f"array {name!r}: {self.values.dtype} values cannot be the bits of {self.bits_of!r}")
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

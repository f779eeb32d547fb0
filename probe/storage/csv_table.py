"""Arrays as tables for a spreadsheet: one row a number, and nothing that a spreadsheet would run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_ROWS_AT_ONCE: Final = 65_536


def cell(value: Any) -> Any:
    """Return a cell's value: a number as it is, a text so that no spreadsheet takes it for a formula."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def write_table(path: Path, name: str, array: xr.DataArray) -> None:
    """Write an array as a CSV file: a column for each axis, by its coordinate, and one for the value."""
    labels = [array[dim].values if dim in array.coords else np.arange(array.sizes[dim]) for dim in array.dims]
    with path.open("x", newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = csv.writer(file)
        rows.writerow([cell(str(dim)) for dim in array.dims] + [cell(name)])
        # A part of the first axis at a time: a whole array as Python numbers is thirty times its size.
        inner = int(np.prod(array.shape[1:], dtype=np.int64))
        step = max(1, _ROWS_AT_ONCE // max(1, inner))
        for start in range(0, array.shape[0], step):
            values = array.isel({array.dims[0]: slice(start, start + step)}).values
            for index in np.ndindex(values.shape):
                where = (index[0] + start, *index[1:])
                at = [cell(axis[i].item()) for axis, i in zip(labels, where, strict=True)]
                rows.writerow([*at, values[index].item()])

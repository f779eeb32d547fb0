"""A trace's arrays in the forms of other tools."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from probe.errors import UsageError
from probe.storage.csv_table import write_table
from probe.storage.safetensors_file import write_safetensors

if TYPE_CHECKING:
    import xarray as xr

SUFFIXES: Final = {"netcdf": ".nc", "csv": "", "safetensors": ".safetensors"}
"""Forms, and how the names of their files end; `csv` makes a folder."""


def export(dataset: xr.Dataset, path: Path | str, form: str) -> Path:
    """Write a dataset at a path where nothing stands, whole or not at all, and return the path.

    Raises UsageError for a form that there is not, or where something stands.
    """
    if form not in SUFFIXES:
        raise UsageError(f"there is no form {form!r} to export to; there are {', '.join(SUFFIXES)}")
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists; it stays as it is")
    write: dict[str, Callable[[Path, xr.Dataset], None]] = {
        "netcdf": _write_netcdf, "csv": _write_tables, "safetensors": write_safetensors
    }  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        write[form](aside / target.name, dataset)
        (aside / target.name).rename(target)
    finally:
        shutil.rmtree(aside)
    return target


def _write_netcdf(path: Path, dataset: xr.Dataset) -> None:
    # NetCDF 4 where its library is there; scipy writes NetCDF 3, which has no 64-bit integers and holds 2 GB an array.
    engine: Literal["h5netcdf", "scipy"] = "h5netcdf" if find_spec("h5netcdf") and find_spec("h5py") else "scipy"
    whole = dataset.assign({name: _as_float(array) for name, array in dataset.data_vars.items()}).drop_encoding()
    for name, array in whole.variables.items():
        if engine == "scipy" and array.nbytes >= 2**31:
            raise UsageError(
                f"array {name!r} is too large for NetCDF 3; install h5netcdf and h5py, or choose fewer layers"
            )
    whole.to_netcdf(path, engine=engine)


def _write_tables(path: Path, dataset: xr.Dataset) -> None:
    path.mkdir()
    for name, array in dataset.data_vars.items():
        write_table(path / f"{name}.csv", str(name), _as_float(array))


def _as_float(array: xr.DataArray) -> xr.DataArray:
    """Return the numbers that bits of bfloat16 stand for, which these forms have no kind for."""
    if array.attrs.get("bits_of") != "bfloat16":
        return array
    numbers = (array.values.astype(np.uint32) << 16).view(np.float32)
    attributes = {key: value for key, value in array.attrs.items() if key != "bits_of"}
    array = array.copy(data=numbers)
    array.attrs = attributes
    return array

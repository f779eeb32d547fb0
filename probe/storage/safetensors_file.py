"""Arrays as a safetensors file (https://huggingface.co/docs/safetensors, "Format"), written without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from probe.errors import UsageError

if TYPE_CHECKING:
    import xarray as xr

_KINDS: Final = {
    "bool": "BOOL", "int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip


def write_safetensors(path: Path, dataset: xr.Dataset) -> None:
    """Write a dataset's arrays and numeric coordinates; axes, units and definitions go into the file's metadata.

    Bits of bfloat16 numbers become bfloat16 tensors. One array is in memory at a time.
    """
    header: dict[str, Any] = {"__metadata__": {}}
    names, offset = [], 0
    for name in map(str, dataset.variables):
        array = dataset[name]
        about = {"dims": list(map(str, array.dims)), **{key: value for key, value in array.attrs.items() if value}}
        if array.dtype.kind not in "biuf":
            # Labels such as the names of spans: safetensors holds numbers alone.
            header["__metadata__"][name] = json.dumps({**about, "labels": array.values.tolist()})
            continue
        kind = "BF16" if array.attrs.get("bits_of") == "bfloat16" else _KINDS.get(array.dtype.name)
        if kind is None:
            raise UsageError(f"array {name!r} holds {array.dtype}, for which safetensors has no kind of number")
        header["__metadata__"][name] = json.dumps(about)
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
        names.append(name)
    said = json.dumps(header).encode()
    # The format wants the numbers to begin at a multiple of 8.
    said += b" " * (-len(said) % 8)
    with path.open("xb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        for name in names:
            values = dataset[name].values
            file.write(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())

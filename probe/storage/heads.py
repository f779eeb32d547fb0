"""Which heads a unit can be asked for, by layer: read from what its arrays are, without their numbers."""

from __future__ import annotations

import re
from typing import Final

from probe.storage.stored_array import StoredArray
from probe.storage.unit_files import UnitFiles

_OF_HEADS: Final = re.compile(r"([A-Za-z][A-Za-z0-9_]*)/zarr\.json")
_OWN: Final = re.compile(r"layers/([0-9]+)/([A-Za-z][A-Za-z0-9_]*)/zarr\.json")


def heads(files: UnitFiles) -> dict[int, int]:
    """Return the number of query heads of each layer of which something by head is stored, layers in order."""
    found: dict[int, int] = {}
    paths = list(files.paths())
    if "layer/zarr.json" in paths:
        size = StoredArray(files, "layer").shape[0]
        layers = StoredArray(files, "layer").read((0, size))
        counts = _counts(files, paths, size)
        found = {int(layer): int(count) for layer, count in zip(layers, counts, strict=True) if count > 0}
    for path in paths:
        match = _OWN.fullmatch(path)
        if match is not None:
            array = StoredArray(files, path.removesuffix("/zarr.json"))
            if "head" in array.dims:
                found[int(match[1])] = max(found.get(int(match[1]), 0), array.shape[array.dims.index("head")])
    return dict(sorted(found.items()))


def _counts(files: UnitFiles, paths: list[str], size: int) -> list[int]:
    if "num_heads/zarr.json" in paths:
        return [int(count) for count in StoredArray(files, "num_heads").read((0, size))]
    # What an early trace does not count, its arrays show.
    most = 0
    for path in paths:
        if _OF_HEADS.fullmatch(path):
            array = StoredArray(files, path.removesuffix("/zarr.json"))
            if array.dims[:2] == ("layer", "head"):
                most = max(most, array.shape[1])
    return [most] * size

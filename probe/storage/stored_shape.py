"""What an array on disk may claim to be: no more than its chunks hold, in the one encoding that is written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import product
from typing import Any, Final

from probe.errors import StoreCorrupt
from probe.storage.durable import parse_json
from probe.storage.far import all_of
from probe.storage.unit_files import UnitFiles

CHUNK_BYTES: Final = 16 * 2**20
"""No chunk is larger than this, uncompressed: what one read may cost in memory."""

CODECS: Final[list[dict[str, Any]]] = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    # zarr's own default has no checksum, and then a flipped bit is a wrong number.
    {"name": "zstd", "configuration": {"level": 1, "checksum": True}},
]
"""How every chunk is encoded; a chunk in any other encoding was not written by this toolkit and is refused."""

_GROUP: Final = re.compile(r"parts(/[a-z]+)?|(parts/[a-z]+/)?layers(/[0-9]+)?")
"""Where a unit has groups of arrays within it."""

_OF_BOTH: Final = frozenset(("zarr_format", "node_type", "attributes"))
_OF_ARRAYS: Final = frozenset(("shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs"))
_DESCRIBED_BY: Final = {
    "group": _OF_BOTH | {"consolidated_metadata"},
    "array": _OF_BOTH | _OF_ARRAYS | {"dimension_names", "fill_value", "storage_transformers"},
}
"""What the `zarr.json` of a group and of an array may say; zarr refuses what it does not know in its own words."""

_DIM: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")

_ITEM_BYTES: Final = (
    {"bool": 1}
    | {f"{kind}{8 * n}": n for kind in ("int", "uint") for n in (1, 2, 4, 8)}
    | {f"float{8 * n}": n for n in (2, 4, 8)}
)


def check_arrays(files: UnitFiles, name: str) -> None:
    """Raise StoreCorrupt unless each array's shape is what its chunks on disk hold, chunk for chunk.

    So a shape that claims more than is there allocates nothing, and a missing chunk cannot read as a fill value.
    """
    paths = set(files.paths())
    chunks: dict[str, set[str]] = {}
    for path in paths:
        array, separator, _ = path.partition("/c/")
        if separator:
            chunks.setdefault(array, set()).add(path)
    described = [path for path in sorted(paths) if f"/{path}".endswith("/zarr.json")]
    for path, data in zip(described, all_of(files.read, described, far=files.far), strict=True):
        array = path.removesuffix("zarr.json").removesuffix("/")
        value = parse_json(data or b"", f"{name}/{path}")
        _check_said(value, f"{name}: array {array}" if array else f"{name}/{path}")
        if array:
            if _GROUP.fullmatch(array) and isinstance(value, dict) and value.get("node_type") == "group":
                continue
            _check_array(value, array, chunks.pop(array, set()), name)
    if chunks:
        raise StoreCorrupt(f"{name}: there are chunks of {min(chunks)!r}, but no such array")


def layers_in(paths: Iterable[str]) -> list[int]:
    """Return the layers that have a group of their own, by the paths of a unit's files."""
    parts = [path.split("/") for path in paths if path.startswith("layers/")]
    return sorted({int(part[1]) for part in parts if len(part) == 3 and part[2] == "zarr.json"})


def _check_said(value: Any, where: str) -> None:
    """Raise StoreCorrupt unless a description has no more keys than it may, and attributes that are plain values."""
    kind = value.get("node_type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _DESCRIBED_BY or not set(value) <= _DESCRIBED_BY[kind]:
        raise StoreCorrupt(f"{where} is not described as this toolkit describes an array or a group")
    attributes = value.get("attributes", {})
    labels = attributes.get("labels", {}) if isinstance(attributes, dict) and kind == "group" else {}
    plain = isinstance(attributes, dict) and all(
        isinstance(each, str | int | float | bool)
        for key, each in attributes.items()
        if not (key == "labels" and kind == "group")
    )
    named = isinstance(labels, dict) and all(
        isinstance(names, list) and all(isinstance(each, str) for each in names) for names in labels.values()
    )
    if not plain or not named:
        raise StoreCorrupt(f"{where} has attributes that are no plain values")


def _check_array(value: Any, array: str, chunks: set[str], name: str) -> None:
    where = f"{name}: array {array}"
    try:
        shape, chunk_shape = value["shape"], value["chunk_grid"]["configuration"]["chunk_shape"]
        item_bytes, codecs = _ITEM_BYTES[value["data_type"]], value["codecs"]
        known = value["zarr_format"] == 3 and value["node_type"] == "array" and value["chunk_grid"]["name"] == "regular"
        known = known and value["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        known = known and not value.get("storage_transformers")
    except (KeyError, TypeError) as error:
        raise StoreCorrupt(f"{where} is not described as this toolkit describes one: {error!r}") from error
    sizes = [*shape, *chunk_shape] if isinstance(shape, list) and isinstance(chunk_shape, list) else [None]
    if not known or any(type(size) is not int or size < 0 for size in sizes) or len(shape) != len(chunk_shape):
        raise StoreCorrupt(f"{where} is not described as this toolkit describes one")
    dims = value.get("dimension_names")
    if not isinstance(dims, list) or not all(isinstance(dim, str) and _DIM.fullmatch(dim) for dim in dims):
        raise StoreCorrupt(f"{where} has axes without names")
    if len(dims) != len(shape) or len({*dims}) != len(dims) or isinstance(value.get("fill_value"), list | dict):
        raise StoreCorrupt(f"{where} is not described as this toolkit describes one")
    if not isinstance(codecs, list) or [_codec(codec, item_bytes) for codec in codecs] != [
        _codec(codec, item_bytes) for codec in CODECS
    ]:
        raise StoreCorrupt(f"{where} is encoded as this toolkit encodes nothing")
    if math.prod(chunk_shape) * item_bytes > CHUNK_BYTES or 0 in chunk_shape:
        raise StoreCorrupt(f"{where} has chunks of {chunk_shape}, more than {CHUNK_BYTES} bytes or none at all")
    counts = [-(-size // step) for size, step in zip(shape, chunk_shape, strict=True)]
    # The number first: a shape of 10^12 would make as many names.
    expected = math.prod(counts)
    if expected == len(chunks):
        names = {f"{array}/c/" + "/".join(map(str, index)) for index in product(*map(range, counts))}
        if names == chunks:
            return
    raise StoreCorrupt(f"{where} of shape {shape} has {expected} chunks, but those of the manifest are {len(chunks)}")


def _codec(codec: Any, item_bytes: int) -> Any:
    # The order of bytes does not apply to single bytes, and zarr leaves it out.
    return "bytes" if item_bytes == 1 and isinstance(codec, dict) and codec.get("name") == "bytes" else codec

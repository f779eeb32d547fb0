"""The attention map of one head at any power of two of its finest blocks: what is seen before a window is exact."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from probe.errors import MissingStatistic, UsageError
from probe.storage.block_axes import plain_dim
from probe.storage.stored_array import StoredArray
from probe.storage.unit_files import UnitFiles

if TYPE_CHECKING:
    import xarray as xr

_MAP: Final = re.compile(r"(?:layers/([0-9]+)/)?(attention_map(?:_grid_[0-9]+)?)/zarr\.json")


class _Level(NamedTuple):
    tokens: int
    path: str
    mean: StoredArray
    front: tuple[tuple[int, int], ...]


def levels(files: UnitFiles, layer: int) -> tuple[int, ...]:
    """Return the block size of each level of a layer's pyramid, in tokens: from the finest that is stored to one cell.

    Raises MissingStatistic where no attention map of the layer was captured.
    """
    finest = _stored(files, layer)[0]
    rows, columns = finest.mean.shape[-2:]
    extent = finest.tokens * max(rows, columns)
    return tuple(finest.tokens << level for level in range((extent // finest.tokens - 1).bit_length() + 1))


def pyramid(
    files: UnitFiles,
    num_queries: int,
    layer: int,
    head: int,
    level: int,
    queries: slice = slice(None),
    keys: slice = slice(None),
) -> xr.Dataset:
    """Return `mean` and `max` of one head `[query_block key_block]` at a level, 0 being the finest that is stored.

    `mean` is the mean over a cell's queries of Σ_j p_ij, as `attention_map` defines it, `max` its largest p_ij; the
    coordinates are the blocks' first positions, and the attribute `block_tokens` their size. A coarser level is made
    from the nearest stored one: sums of sums by the number of queries, maxima of maxima. With `queries` and `keys`
    (positions) only the blocks that they touch are read and returned.
    """
    import xarray as xr

    sizes = levels(files, layer)
    if not 0 <= operator.index(level) < len(sizes):
        raise IndexError(f"layer {layer} has no level {level}; its levels are 0 to {len(sizes) - 1}")
    tokens = sizes[level]
    source = [each for each in _stored(files, layer) if each.tokens <= tokens][-1]
    _check_head(files, source, layer, head)
    largest = StoredArray(files, f"{source.path}_max")
    shape = source.mean.shape[-2:]
    rows, columns = (
        _blocks(name, asked, tokens, source.tokens, size)
        for name, asked, size in zip(("queries", "keys"), (queries, keys), shape, strict=True)
    )
    front = (*source.front, (head, head + 1))
    mean = source.mean.read(*front, rows, columns).reshape(rows[1] - rows[0], columns[1] - columns[0])
    maximum = largest.read(*front, rows, columns).reshape(mean.shape)
    if not np.isfinite(mean).any():
        raise _missing(layer)
    merged = tokens // source.tokens
    start = np.arange(*rows) * source.tokens
    count = np.clip(num_queries - start, 0, source.tokens)
    if merged > 1:
        sums = _merge(mean.astype(np.float64) * count[:, None], merged).sum((1, 3))
        count = np.add.reduceat(count, np.arange(0, len(count), merged)) if len(count) else count
        mean = (sums / np.maximum(count, 1)[:, None]).astype(np.float32)
        maximum = _merge(maximum, merged).max((1, 3))
    dims = ("query_block", "key_block")
    starts = [np.arange(first // merged, -(-last // merged)) * tokens for first, last in (rows, columns)]
    return xr.Dataset(
        {"mean": (dims, mean), "max": (dims, maximum), "num_queries": (dims[:1], count)},
        dict(zip(dims, starts, strict=True)),
        {"block_tokens": tokens, "level": level, "layer": layer, "head": head, "unit": "probability"},
    )


def _blocks(name: str, asked: slice, tokens: int, fine: int, size: int) -> tuple[int, int]:
    """Return the range of stored blocks under the coarse ones that a slice of positions touches."""
    if not isinstance(asked, slice) or asked.step not in (None, 1):
        raise UsageError(f"{name} must be a slice of consecutive positions, not {asked!r}")
    start = 0 if asked.start is None else operator.index(asked.start)
    stop = size * fine if asked.stop is None else operator.index(asked.stop)
    if not 0 <= start < stop <= size * fine:
        raise IndexError(f"{name} {start}:{stop} lie outside of the map; valid positions are 0:{size * fine}")
    return start // tokens * (tokens // fine), min(size, -(-stop // tokens) * (tokens // fine))


def _merge(values: np.ndarray[Any, Any], by: int) -> np.ndarray[Any, Any]:
    """Return the cells in squares of `by`, `[row by column by]`; what lies beyond the edge is 0."""
    rows, columns = (-(-size // by) * by for size in values.shape)
    padded = np.zeros((rows, columns), values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded.reshape(rows // by, by, columns // by, by)


def _stored(files: UnitFiles, layer: int) -> list[_Level]:
    """Return the maps that hold a layer, the finest first."""
    found = []
    for path in files.paths():
        match = _MAP.fullmatch(path)
        if match is None or match[1] not in (None, str(layer)):
            continue
        name = path.removesuffix("/zarr.json")
        array = StoredArray(files, name)
        front: tuple[tuple[int, int], ...] = ()
        if match[1] is None:
            index = _index(files, layer, array.shape[0])
            if index is None:
                continue
            front = ((index, index + 1),)
        found.append(_Level(_block_tokens(files, array), name, array, front))
    if not found:
        raise _missing(layer)
    return sorted(found, key=lambda each: (each.tokens, -len(each.front)))


def _missing(layer: int) -> MissingStatistic:
    return MissingStatistic(
        f"no attention map of layer {layer} was captured. To capture it: probe.trace(model, sample, "
        f"statistics=['attention_map', {{'attention_map': {{'grid': 2048, 'layers': [{layer}]}}}}])"
    )


def _index(files: UnitFiles, layer: int, num_layers: int) -> int | None:
    layers = StoredArray(files, "layer").read((0, num_layers))
    found = np.flatnonzero(layers == layer)
    return int(found[0]) if len(found) else None


def _block_tokens(files: UnitFiles, array: StoredArray) -> int:
    dim, tokens = plain_dim(array.dims[-1])
    if tokens is not None:
        return tokens
    # A trace of format 1 says it by its coordinate alone.
    starts = StoredArray(files, dim).read((0, min(2, array.shape[-1])))
    return int(starts[1] - starts[0]) if len(starts) > 1 else 1


def _check_head(files: UnitFiles, source: _Level, layer: int, head: int) -> None:
    num_heads = source.mean.shape[-3]
    if source.front:
        counts: Mapping[int, Any] = dict(enumerate(StoredArray(files, "num_heads").read((0, source.mean.shape[0]))))
        num_heads = max(0, int(counts[source.front[0][0]])) or num_heads
    if not 0 <= operator.index(head) < num_heads:
        raise IndexError(f"layer {layer} has no head {head}; its heads are 0 to {num_heads - 1}")

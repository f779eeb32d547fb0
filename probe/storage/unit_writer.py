"""Writes one unit: one sample under one condition, as it is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from probe.errors import UsageError
from probe.outcome import Outcome
from probe.sample import Sample
from probe.storage.array import Array
from probe.storage.chunked_array import write_whole
from probe.storage.commits import UNIT_ID
from probe.storage.durable import canonical_json
from probe.storage.group_writer import GroupWriter, Shape, grow_coordinates
from probe.storage.growing_array import GrowingArray
from probe.storage.layered_array import LayeredArray
from probe.storage.manifest import FORMAT
from probe.storage.unit_files import MemoryFiles, OpenFiles, remove_unit

NOTES: Final = ("num_queries", "engine", "attention", "non_finite", "private")
"""What capture may add: how many queries were seen, which scan ran, how layers attend, where numbers were bad,
and whether words were left out."""

_COUNTS: Final = {"head": "num_heads", "kv_head": "num_kv_heads"}


class UnitWriter:
    """A unit that is being written. It does not exist for any reader until `commit`; `abandon` removes it.

    As a context manager it abandons what was not committed.
    """

    def __init__(
        self,
        unit: str,
        files: OpenFiles | MemoryFiles,
        committed: Callable[[Mapping[str, Any]], None],
        *,
        stage: str,
        condition: str,
        facts: Mapping[str, Any],
        sample: Sample,
        provenance: Mapping[str, Any],
        layers: Sequence[int] | None = None,
    ) -> None:
        if not UNIT_ID.fullmatch(unit):
            raise UsageError(f"{unit!r} cannot name a unit: small letters, digits, '.', '_' and '-', at most 121")
        self.unit = unit
        """Id of the unit."""
        self._about: dict[str, Any] = {
            "format": FORMAT,
            "unit": unit,
            "stage": stage,
            "condition": condition,
            "facts": dict(facts),
            "provenance": dict(provenance),
            "num_queries": None,
            "attention": {},
            "non_finite": [],
            "private": False,
        }
        canonical_json(self._about)
        self._sample = sample
        self._sample_json = canonical_json(sample.to_json())
        self._files = files
        self._committed = committed
        self._layers = None if layers is None else [int(layer) for layer in layers]
        self._layered: dict[str, LayeredArray] = {}
        self._growing: dict[str, GrowingArray] = {}
        self._group = GroupWriter(files, "", unit)
        self._of_layer: dict[int, GroupWriter] = {}
        self._counts: dict[str, dict[int, int]] = {name: {} for name in _COUNTS.values()}
        self._open = True

    def write_layer(self, layer: int, arrays: Mapping[str, Array]) -> None:
        """Write one layer of some arrays; a layer's arrays may come in several calls, layers in any order.

        Layers may differ in their number of heads and in channels, and an array may lack layers: it is filled up with
        NaN, or -1. Raises UsageError where an array does not go with what was written before.
        """
        index = self._index(layer)
        for name, array in arrays.items():
            self._check_layered(name, array, name in self._layered)
            self._group.coordinates.put(name, array.stored_coordinates)
            self._count(layer, index, name, array)
            if name not in self._layered:
                self._layered[name] = LayeredArray(self._files, name, array)
            self._layered[name].put(index, array)

    def append_layer(self, layer: int, arrays: Mapping[str, Array], axis: str) -> None:
        """Add the next part along `axis` of one layer of some arrays; no more than the last chunk stays in memory.

        Nothing is said of how the parts were cut: the array that is read is their concatenation. Layers may come in any
        order and must end at the same length.
        """
        index = self._index(layer)
        for name, array in arrays.items():
            self._check_layered(name, array, name in self._growing)
            self._count(layer, index, name, array)
            if axis in array.dims and name not in self._growing:
                self._growing[name] = GrowingArray(self._files, name, array, axis, layered=True)
            length = self._growing[name].length(index) if name in self._growing else 0
            grow_coordinates(self._group.coordinates, name, array, axis, length)
            self._growing[name].append(index, array)

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Write arrays whole: those without a layer axis, or with all their layers at once."""
        for name in arrays:
            self._check_name(name, name in self._layered or name in self._growing)
        self._group.write(arrays)

    def append(self, arrays: Mapping[str, Array], axis: str) -> None:
        """Add the next part along `axis` of arrays without a layer axis."""
        for name in arrays:
            self._check_name(name, name in self._layered or name in self._growing)
        self._group.append(arrays, axis)

    def of_layer(self, layer: int) -> GroupWriter:
        """Return the group of what is kept of this layer alone; `Trace.layer` reads it."""
        self._check_name("", False)
        if layer < 0:
            raise UsageError(f"there is no layer {layer}")
        if layer not in self._of_layer:
            self._of_layer[layer] = GroupWriter(self._files, f"layers/{layer}/", self.unit)
        return self._of_layer[layer]

    def note(self, **facts: Any) -> None:
        """Record what was learnt while the unit was captured (`NOTES` says what there is), as JSON values."""
        canonical_json(facts)
        for name, value in facts.items():
            if name not in NOTES:
                raise UsageError(f"a unit has no place for {name!r}; it has {', '.join(NOTES)}")
            if name == "engine":
                self._about["provenance"][name] = value
            else:
                self._about[name] = value

    def write_token_text(self, text: Mapping[int, str]) -> None:
        """Record what tokens read as, by their id; nothing is written where nothing is known."""
        if text:
            spelt = {str(token): text[token] for token in sorted(text)}
            self._files.write("token_text.json", canonical_json(spelt).encode())

    @property
    def non_finite(self) -> list[dict[str, Any]]:
        """What was noted of heads with NaN or infinity in them."""
        return list(self._about["non_finite"])

    def commit(self, outcome: Outcome | None = None) -> None:
        """Write what is left and put the unit on record; when this returns, it is on the disk.

        Where it raises, the unit is abandoned; an interrupt at the last moment leaves it committed, or to be removed by
        the next writer.
        """
        if not self._open:
            raise UsageError(f"unit {self.unit!r} is committed or abandoned already")
        try:
            self._commit(outcome)
        finally:
            self.abandon()

    def _commit(self, outcome: Outcome | None) -> None:
        self._finish_arrays()
        about = {**self._about, "outcome": None if outcome is None else outcome.to_json()}
        self._files.write("unit.json", canonical_json(about).encode())
        self._files.write("sample.json", self._sample_json.encode())
        record = {
            "unit": self.unit,
            "stage": self._about["stage"],
            "condition": self._about["condition"],
            "role": self._about["facts"].get("role"),
            "sample": self._sample.name,
            "failed": outcome.failed if outcome else None,
        }
        if isinstance(self._files, OpenFiles):
            record["manifest"] = hashlib.sha256(self._files.seal()).hexdigest()
        # From here on the folder stays: an interrupt may come after the record and before this returns.
        self._open = False
        self._committed(record)

    def abandon(self) -> None:
        """Remove the unit, if it was not committed."""
        if self._open:
            self._open = False
            self._layered.clear()
            self._growing.clear()
            if isinstance(self._files, OpenFiles):
                remove_unit(self._files.folder)

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def _index(self, layer: int) -> int:
        if self._layers is None:
            if layer < 0:
                raise UsageError(f"there is no layer {layer}")
            return layer
        if layer not in self._layers:
            raise UsageError(f"layer {layer} is not among the layers of unit {self.unit!r}: {self._layers}")
        return self._layers.index(layer)

    def _check_layered(self, name: str, array: Array, known: bool) -> None:
        array.check(name)
        self._check_name(name, name in self._group or (not known and (name in self._layered or name in self._growing)))
        if "layer" in array.dims:
            raise UsageError(f"array {name!r} has a layer axis of its own; use `write`")

    def _check_name(self, name: str, taken: bool) -> None:
        if not self._open:
            raise UsageError(f"unit {self.unit!r} is committed or abandoned already")
        if taken or name in _COUNTS.values():
            raise UsageError(f"array {name!r} of unit {self.unit!r} was written already, or is the writer's own")

    def _count(self, layer: int, index: int, name: str, array: Array) -> None:
        for dim, size in zip(array.dims, array.values.shape, strict=True):
            if dim in _COUNTS and self._counts[_COUNTS[dim]].setdefault(index, size) != size:
                raise UsageError(
                    f"array {name!r} has {size} along {dim!r} in layer {layer}, "
                    f"an array before it {self._counts[_COUNTS[dim]][index]}"
                )

    def _finish_arrays(self) -> None:
        layered: dict[str, LayeredArray | GrowingArray] = {**self._layered, **self._growing}
        num_layers = max((array.num_layers for array in layered.values()), default=0)
        num_layers = num_layers if self._layers is None else len(self._layers)
        sizes: dict[str, int] = {"layer": num_layers} if layered else {}
        for array in layered.values():
            for dim, size in zip(array.dims, array.shape, strict=True):
                if dim in _COUNTS:
                    sizes[dim] = max(size, sizes.get(dim, 0))
        shapes: dict[str, Shape] = {}
        for name, array in layered.items():
            array.finish(num_layers, sizes)
            shapes[name] = array.stored_dims, _padded(array, sizes)
        if layered:
            layers = np.arange(num_layers) if self._layers is None else np.array(self._layers)
            self._group.coordinates.put("layer", {"layer": layers})
        for name, by_layer in self._counts.items():
            if by_layer:
                counts = np.array([by_layer.get(index, -1) for index in range(num_layers)], np.int32)
                definition = "how many this layer has; what stands beyond is filling; -1 where nothing was written"
                write_whole(self._files, name, Array(("layer",), counts, definition=definition))
        shown = {key: self._about[key] for key in ("format", "unit", "stage", "condition")}
        self._group.finish(shapes, sizes, shown)
        for layer, group in self._of_layer.items():
            group.finish({}, {}, {"layer": layer})
        if self._of_layer:
            parent = {"zarr_format": 3, "node_type": "group", "attributes": {"holds": "what was kept of single layers"}}
            self._files.write("layers/zarr.json", canonical_json(parent).encode())


def _padded(array: LayeredArray | GrowingArray, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(max(n, sizes.get(dim, 0)) for dim, n in zip(array.dims, array.shape, strict=True))

"""Writes one unit: one sample under one condition, as it is computed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, get_args

from probe.errors import StoreUnreachable, UsageError
from probe.outcome import Outcome
from probe.sample import Sample
from probe.storage.array import Array
from probe.storage.chunked_array import WritableFiles
from probe.storage.commits import UNIT_ID
from probe.storage.durable import canonical_json
from probe.storage.group_writer import GroupWriter
from probe.storage.layered_group import LayeredGroup, write_group
from probe.storage.manifest import FORMAT
from probe.storage.unit_files import OpenFiles, OpenObjects, remove_unit

NOTES: Final = ("num_queries", "engine", "prompt", "attention", "non_finite", "left_out", "private", "cost")
"""What capture may add: how many queries were seen, which scan ran, in which pieces the prompt went in, how layers
attend, where numbers were bad, whether words were left out, and what reading took."""

Part = Literal["encoder", "cross"]
"""What an encoder-decoder has beside its decoder's own attention: the encoder's, and the decoder's over the encoder."""


class PartWriter(LayeredGroup):
    """The arrays of one part of a model, in a group of their own within the unit; `Trace.part` reads it."""

    def __init__(self, files: WritableFiles, part: Part, unit: str) -> None:
        super().__init__(files, f"parts/{part}/", unit)
        self.notes: dict[str, Any] = {"num_queries": None, "attention": {}, "non_finite": []}
        """What was learnt of this part."""

    def note(self, **facts: Any) -> None:
        """Record what was learnt of this part, as JSON values."""
        canonical_json(facts)
        for name, value in facts.items():
            if name not in NOTES or name in ("private", "cost"):
                raise UsageError(f"a part of a unit has no place for {name!r}; it has {', '.join(NOTES[:-2])}")
            self.notes[name] = value


class UnitWriter:
    """A unit that is being written. It does not exist for any reader until `commit`; `abandon` removes it.

    As a context manager it abandons what was not committed.
    """

    def __init__(
        self,
        unit: str,
        files: WritableFiles,
        committed: Callable[[Mapping[str, Any]], None],
        *,
        stage: str,
        condition: str,
        facts: Mapping[str, Any],
        sample: Sample,
        provenance: Mapping[str, Any],
        layers: Sequence[int] | None = None,
        place: Sequence[int] | None = None,
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
            "cost": None,
        }
        canonical_json(self._about)
        self._place = place
        self._sample = sample
        self._sample_json = canonical_json(sample.to_json())
        self._files = files
        self._committed = committed
        self._group = LayeredGroup(files, "", unit, layers)
        self._parts: dict[Part, PartWriter] = {}
        self._open = True

    def write_layer(self, layer: int, arrays: Mapping[str, Array]) -> None:
        """Write one layer of some arrays; a layer's arrays may come in several calls, layers in any order.

        Layers may differ in their number of heads and in channels, and an array may lack layers: it is filled up with
        NaN, or -1. Raises UsageError where an array does not go with what was written before.
        """
        self._check_open()
        self._group.write_layer(layer, arrays)

    def append_layer(self, layer: int, arrays: Mapping[str, Array], axis: str) -> None:
        """Add the next part along `axis` of one layer of some arrays; no more than the last chunk stays in memory.

        Nothing is said of how the parts were cut: the array that is read is their concatenation. Layers may come in any
        order and must end at the same length.
        """
        self._check_open()
        self._group.append_layer(layer, arrays, axis)

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Write arrays whole: those without a layer axis, or with all their layers at once."""
        self._check_open()
        self._group.write(arrays)

    def append(self, arrays: Mapping[str, Array], axis: str) -> None:
        """Add the next part along `axis` of arrays without a layer axis."""
        self._check_open()
        self._group.append(arrays, axis)

    def of_layer(self, layer: int) -> GroupWriter:
        """Return the group of what is kept of this layer alone; `Trace.layer` reads it."""
        self._check_open()
        return self._group.of_layer(layer)

    def part(self, part: Part) -> PartWriter:
        """Return the writer of what an encoder-decoder's `encoder` or `cross` attention did; `Trace.part` reads it."""
        self._check_open()
        if part not in get_args(Part):
            raise UsageError(f"a unit has no part {part!r}; it has {', '.join(get_args(Part))}")
        if part not in self._parts:
            self._parts[part] = PartWriter(self._files, part, self.unit)
        return self._parts[part]

    def note(self, **facts: Any) -> None:
        """Record what was learnt while the unit was captured (`NOTES` says what there is), as JSON values."""
        canonical_json(facts)
        for name, value in facts.items():
            if name not in NOTES:
                raise UsageError(f"a unit has no place for {name!r}; it has {', '.join(NOTES)}")
            if name in ("engine", "prompt", "left_out"):
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
        found = list(self._about["non_finite"])
        return [*found, *(each for part in self._parts.values() for each in part.notes["non_finite"])]

    def commit(self, outcome: Outcome | None = None) -> Mapping[str, Any]:
        """Write what is left and put the unit on record, which is returned; then it is on the disk.

        Where it raises, the unit is abandoned; an interrupt at the last moment leaves it committed, or to be removed by
        the next writer.
        """
        if not self._open:
            raise UsageError(f"unit {self.unit!r} is committed or abandoned already")
        try:
            return self._commit(outcome)
        finally:
            self.abandon()

    def _commit(self, outcome: Outcome | None) -> Mapping[str, Any]:
        shown = {key: self._about[key] for key in ("format", "unit", "stage", "condition")}
        self._group.finish(shown)
        if self._parts:
            self._about["parts"] = {part: writer.notes for part, writer in self._parts.items()}
            write_group(self._files, "parts/", "what the parts of an encoder-decoder did")
        for part, writer in self._parts.items():
            writer.finish({**shown, "part": part})
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
        if self._place is not None:
            record["place"] = list(self._place)
        if isinstance(self._files, OpenFiles | OpenObjects):
            record["manifest"] = hashlib.sha256(self._files.seal()).hexdigest()
        # From here on the folder stays: an interrupt may come after the record and before this returns.
        self._open = False
        self._committed(record)
        return record

    def abandon(self) -> None:
        """Remove the unit, if it was not committed."""
        if self._open:
            self._open = False
            self._group.clear()
            self._parts.clear()
            if isinstance(self._files, OpenFiles):
                remove_unit(self._files.folder)
            elif isinstance(self._files, OpenObjects):
                # Where the store cannot be reached, the next writer removes it.
                with contextlib.suppress(StoreUnreachable):
                    remove_unit(self._files.folder)

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def _check_open(self) -> None:
        if not self._open:
            raise UsageError(f"unit {self.unit!r} is committed or abandoned already")

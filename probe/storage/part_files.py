"""The files of one part of an encoder-decoder's unit, as if they were a unit's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from probe.errors import StoreCorrupt
from probe.storage.durable import canonical_json, parse_json
from probe.storage.unit_files import UnitFiles

_SHARED: Final = ("sample.json", "token_text.json")


class PartFiles:
    """What lies under `parts/PART/`, with the sample and the outcome of the whole; holds no bytes of its own."""

    def __init__(self, files: UnitFiles, part: str) -> None:
        self._files = files
        self._part = part
        self._prefix = f"parts/{part}/"
        self.far = files.far
        """Whether each read is a journey over a network."""

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes; what describes the unit speaks of the part alone where the part has its own."""
        if path in _SHARED:
            return self._files.read(path)
        if path == "unit.json":
            return self._about()
        return self._files.read(self._prefix + path)

    def paths(self) -> Iterator[str]:
        """Yield the path of every file that the part has, shared ones too."""
        for path in self._files.paths():
            if path.startswith(self._prefix):
                yield path.removeprefix(self._prefix)
            elif path in (*_SHARED, "unit.json"):
                yield path

    def _about(self) -> bytes:
        about = parse_json(self._files.read("unit.json") or b"", "unit.json")
        if not isinstance(about, dict) or not isinstance(about.get("parts"), dict):
            raise StoreCorrupt("unit.json does not describe the parts of a unit")
        notes = dict(about.pop("parts")[self._part])
        how = {name: notes.pop(name) for name in ("engine", "prompt") if name in notes}
        about["provenance"] = {**about["provenance"], **how, "part": self._part}
        return canonical_json({**about, **notes}).encode()

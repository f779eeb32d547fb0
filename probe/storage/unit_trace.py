"""A trace: one sample under one condition, as it was captured."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import MissingStatistic, ProbeError, StoreCorrupt, UsageError
from probe.outcome import Outcome
from probe.sample import Sample
from probe.storage.commits import Commits
from probe.storage.damage import Damage, damage_of
from probe.storage.durable import MAX_JSON_BYTES, parse_json, read_json, sync_folder, write_json
from probe.storage.manifest import FORMAT, check_format
from probe.storage.stored_shape import check_arrays
from probe.storage.unit_files import OpenFiles, SealedFiles, UnitFiles

if TYPE_CHECKING:
    import xarray as xr


class Trace:
    """One sample under one condition: its statistics as labelled arrays, what the model answered, and where from.

    `trace["entropy"]` is an xarray DataArray. Nothing is read before it is used, and each chunk is held against its
    hash as it is read: StoreCorrupt names what is not as it was written.
    """

    def __init__(self, files: UnitFiles, where: str = "a trace in memory") -> None:
        self._files = files
        self._where = where
        about = self._json("unit.json")
        try:
            check_format(about["format"], f"{where}/unit.json")
            self.unit: str = about["unit"]
            """Id of the unit."""
            self.stage: str = about["stage"]
            """Stage of the casebook that captured it; empty outside of one."""
            self.condition: str = about["condition"]
            """What was done to the model or to the prompt."""
            self.facts: dict[str, Any] = about["facts"]
            """What the condition is, as JSON values: `role`, `intervention`, `draw`."""
            self.provenance: dict[str, Any] = about["provenance"]
            """Model, weights, tokenizer, dtype, device and versions behind the numbers."""
            outcome = about["outcome"]
            self.outcome: Outcome | None = None if outcome is None else Outcome.from_json(outcome)
            """What the model answered, None where nothing was asked."""
        except (KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{where}/unit.json is not what describes a unit: {error!r}") from error

    @classmethod
    def open(cls, folder: Path, record: Mapping[str, Any]) -> Trace:
        """Open a committed unit; raises StoreCorrupt where a file is missing, or a shape claims what is not there."""
        files = SealedFiles(folder, str(record["manifest"]))
        check_arrays(files, str(folder))
        trace = cls(files, str(folder))
        if trace.unit != record["unit"]:
            raise StoreCorrupt(f"{folder} holds unit {trace.unit!r}, but the record says {record['unit']!r}")
        return trace

    @functools.cached_property
    def sample(self) -> Sample:
        """The prompt, its spans and the right answer."""
        try:
            return Sample.from_json(self._json("sample.json"))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{self._where}/sample.json is not a sample: {error!r}") from error

    @functools.cached_property
    def dataset(self) -> xr.Dataset:
        """Every statistic, labelled; values are read when they are used."""
        # Here rather than above: what a run found is shown in a third of the time without them.
        import numpy as np
        import xarray as xr

        from probe.storage.zarr_view import ZarrView

        # Uncached, or a run's traces would fill the memory one after the other.
        dataset: xr.Dataset = xr.open_dataset(
            ZarrView(self._files),
            engine="zarr",
            consolidated=False,
            chunks=None,
            cache=False,
            decode_cf=False,
            zarr_format=3,
        )
        labels = dataset.attrs.pop("labels", {})
        return dataset.assign_coords({dim: np.array(values, dtype=str) for dim, values in labels.items()})

    def __getitem__(self, name: str) -> xr.DataArray:
        """Return a statistic; raises MissingStatistic naming those that were captured."""
        if name not in self.dataset:
            there = ", ".join(map(str, self.dataset.data_vars)) or "none"
            raise MissingStatistic(
                f"the trace {self.unit!r} has no {name!r}; it has {there}. To capture it: "
                f"probe.trace(model, sample, statistics=[{name!r}])"
            )
        return self.dataset[name]

    def __contains__(self, name: object) -> bool:
        return name in self.dataset

    def verify(self) -> list[Damage]:
        """Read every byte and return what is not as it was written; empty where all is well, or all is in memory."""
        if not isinstance(self._files, SealedFiles):
            return []
        return damage_of(self.unit, self._files.folder, self._files.manifest)

    def save(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write the trace as a folder of its own, which `probe.open` reads, and return its path.

        Raises UsageError where something stands there: always if that is not a saved trace, else without `overwrite`.
        """
        target = Path(path)
        if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
            if not _is_saved_trace(target):
                raise UsageError(f"{target} exists and is not a saved trace; it stays as it is")
            if not overwrite:
                raise UsageError(f"{target} exists; overwrite=True replaces it")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as aside:
            self._write(Path(aside, "new"))
            if target.exists():
                target.rename(Path(aside, "old"))
            Path(aside, "new").rename(target)
        sync_folder(target.parent)
        return target

    def _write(self, folder: Path) -> None:
        units = folder / "trace.zarr"
        units.mkdir(parents=True)
        copy = OpenFiles(units / self.unit)
        for path in self._files.paths():
            copy.write(path, self._files.read(path) or b"")
        manifest = hashlib.sha256(copy.seal()).hexdigest()
        write_json(units / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
        write_json(folder / "trace.json", {"format": FORMAT, "kind": "trace", "unit": self.unit})
        Commits(folder / "commits.jsonl").append({"unit": self.unit, "manifest": manifest})

    def _json(self, path: str) -> Any:
        data = self._files.read(path)
        if data is None or len(data) > MAX_JSON_BYTES:
            raise StoreCorrupt(f"{self._where}: {path} is missing or too large")
        return parse_json(data, f"{self._where}/{path}")

    def __repr__(self) -> str:
        arrays = ", ".join(
            f"{name}[{' '.join(map(str, array.dims))}]" for name, array in self.dataset.data_vars.items()
        )
        return f"Trace({self.unit!r}, condition={self.condition!r}, {arrays or 'no statistics'})"

    def _repr_html_(self) -> str:
        from probe.storage.trace_html import trace_html

        return trace_html(self)


def _is_saved_trace(folder: Path) -> bool:
    try:
        value = read_json(folder / "trace.json")
    except (ProbeError, OSError):
        return False
    return isinstance(value, dict) and value.get("kind") == "trace"

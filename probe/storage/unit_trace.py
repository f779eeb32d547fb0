"""A trace: one sample under one condition, as it was captured."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import MissingStatistic, StoreCorrupt, UsageError
from probe.outcome import Outcome
from probe.sample import Sample
from probe.storage.block_axes import BLOCK_AXES, plain_dim
from probe.storage.commits import Commits
from probe.storage.damage import Damage, damage_of
from probe.storage.durable import MAX_JSON_BYTES, parse_json, write_json
from probe.storage.migration import migrated
from probe.storage.object_path import Location, location
from probe.storage.part_files import PartFiles
from probe.storage.saved_trace import saved_trace, write_trace_json
from probe.storage.stored_shape import check_arrays, layers_in
from probe.storage.unit_files import SealedFiles, UnitFiles, open_files
from probe.visible import visible

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from probe.storage.inline_view import InlineView
    from probe.storage.stored_array import StoredArray


class Trace:
    """One sample under one condition: its statistics as labelled arrays, what the model answered, and where from.

    `trace["entropy"]` is an xarray DataArray. Nothing is read before it is used, and each chunk is held against its
    hash as it is read: StoreCorrupt names what is not as it was written.
    """

    def __init__(self, files: UnitFiles, where: str = "a trace in memory") -> None:
        self._files = files
        self._where = where
        try:
            about = migrated(self._json("unit.json"), lambda: self._json("sample.json"), f"{where}/unit.json")
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
            self.kept_layers: dict[str, dict[str, Any]] = about["attention"]
            """How each layer whose queries and keys were kept attends, by its index as a string."""
            self.non_finite: list[dict[str, Any]] = about["non_finite"]
            """Heads with NaN or infinity in them: `layer`, `side` (`query`, or `key` for a key-value head), `head`,
            `num_values`, `first_position`."""
            self.private: bool = about["private"]
            """Whether token ids and text were left out."""
            self.cost: dict[str, Any] | None = about.get("cost")
            """What reading it took on the machine that did: `seconds`, `peak_bytes`, and what `memory` these are; None
            outside of a run. No part of what the trace is: another run of the same has another."""
            self._num_queries = about["num_queries"]
            self._parts: tuple[str, ...] = tuple(about.get("parts", {}))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{where}/unit.json is not what describes a unit: {error!r}") from error

    @classmethod
    def open(cls, folder: Location, record: Mapping[str, Any]) -> Trace:
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
        return self._opened("")

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of an encoder-decoder that were captured beside the decoder's own attention: `encoder`, `cross`."""
        return tuple(self._parts)

    def part(self, part: str) -> Trace:
        """Return the trace of the encoder's own attention (`encoder`), or of the decoder's over the encoder (`cross`).

        It has the same sample and outcome, and all that a trace has; analyses take it as any other. The positions of
        its keys are those of the sample, as are the encoder's queries; the queries of `cross` are the decoder's, whose
        position 0 is the token that decoding starts from. Raises MissingStatistic naming the parts that there are.
        """
        if part not in self._parts:
            there = ", ".join(self._parts) or "the model's only stack of layers"
            raise MissingStatistic(f"the trace {self.unit!r} has no part {part!r}; it has {there}")
        return Trace(PartFiles(self._files, part), f"{self._where}/parts/{part}")

    def layer(self, layer: int) -> xr.Dataset:
        """Return what was kept of this layer alone: its queries and keys, and statistics asked for it by name.

        A bfloat16 vector shows as its bits, in 16-bit integers with the attribute `bits_of`; `window` reads through
        them. Raises MissingStatistic naming the layers that something was kept of.
        """
        there = layers_in(self._files.paths())
        if layer not in there:
            raise MissingStatistic(
                f"nothing was kept of layer {layer} alone in the trace {self.unit!r}; of "
                f"{', '.join(map(str, there)) or 'no layer'} it was"
            )
        return self._opened(f"layers/{layer}/")

    def window(
        self, layer: int, head: int, *, queries: slice = slice(None), keys: slice = slice(None)
    ) -> np.ndarray[Any, Any]:
        """Return the exact probabilities of a window of one head, float32 `[query key]`, at most 2,048 × 2,048.

        Positions are the prompt's, decoded queries after it. Only the chunks that the window touches are read. Raises
        IndexError naming the valid range, UsageError where the layer's queries and keys were not captured.
        """
        from probe.storage.window import window

        return window(self._files, self.kept_layers, layer, head, queries, keys)

    def pyramid(
        self, layer: int, head: int, level: int, *, queries: slice = slice(None), keys: slice = slice(None)
    ) -> xr.Dataset:
        """Return the pooled attention of one head at a level: `mean` and `max` over blocks of queries and keys.

        Level 0 has the finest blocks that were stored, each next one blocks twice as large (`levels` lists them).
        `queries` and `keys` are positions: only blocks that they touch come back. Raises IndexError naming the levels
        or positions that there are, MissingStatistic where no map of the layer was captured.
        """
        from probe.storage.pyramid import pyramid

        return pyramid(self._files, self.num_queries, layer, head, level, queries, keys)

    def levels(self, layer: int) -> tuple[int, ...]:
        """Return the block size in tokens of each level of the layer's pyramid, from the finest to a single cell."""
        from probe.storage.pyramid import levels

        return levels(self._files, layer)

    @functools.cached_property
    def heads(self) -> dict[int, int]:
        """Number of query heads of each layer of which something by head is stored."""
        from probe.storage.heads import heads

        return heads(self._files)

    @functools.cached_property
    def token_text(self) -> dict[int, str]:
        """What each token of the prompt and the answer reads as, by its id; {} where no tokenizer was at hand."""
        if self._files.read("token_text.json") is None:
            return {}
        value = self._json("token_text.json")
        try:
            return {int(token): str(text) for token, text in value.items()}
        except (AttributeError, ValueError) as error:
            raise StoreCorrupt(f"{self._where}/token_text.json does not say what tokens read as: {error!r}") from error

    def stored(self, name: str) -> StoredArray:
        """Return an array of all layers, to be read straight from its chunks and no further than asked.

        For who reads a little of many traces: `trace[name]` opens every array, which takes xarray 30 ms. Axes have
        their names on the disk, and an array of heads is as wide as the widest layer, NaN where a head is not. Raises
        MissingStatistic as `trace[name]` does.
        """
        from probe.storage.stored_array import StoredArray

        try:
            return StoredArray(self._files, name)
        except KeyError:
            there = ", ".join(self.stored_names()) or "none"
            raise MissingStatistic(f"the trace {self.unit!r} has no {name!r}; it has {there}") from None

    def stored_names(self) -> list[str]:
        """Return the names that `stored` takes, those of coordinates among them, without opening any."""
        paths = (path.removesuffix("/zarr.json") for path in self._files.paths() if path.endswith("/zarr.json"))
        return sorted(name for name in paths if "/" not in name and name not in ("layers", "parts"))

    def labels(self, dim: str) -> tuple[str, ...]:
        """Return what the entries along an axis are called, such as `span`; () where they have no names."""
        attributes = self._json("zarr.json").get("attributes") or {}
        return tuple(map(str, (attributes.get("labels") or {}).get(dim, ())))

    def select(
        self,
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        positions: slice | None = None,
    ) -> xr.Dataset:
        """Return the arrays of some layers, query heads and positions, labelled by their own numbers, not yet read.

        Raises IndexError naming what there is. Samples and conditions of a run are chosen by `Run.select`.
        """
        from probe.storage.slicing import select

        return select(self.dataset, layers, heads, positions)

    def export(self, path: Path | str, format: str, *, layer: int | None = None, **selected: Any) -> Path:
        """Write the arrays in another tool's form: one `netcdf` or `safetensors` file, or a folder of `csv` tables.

        With `layer` what was kept of that layer alone. `layers`, `heads` and `positions` are as for `select`. Raises
        UsageError for a form that there is not, and where something stands at `path`.
        """
        from probe.storage.export import export
        from probe.storage.slicing import select

        return export(select(self.dataset if layer is None else self.layer(layer), **selected), path, format)

    @property
    def num_queries(self) -> int:
        """Queries that were seen, the prompt's and the decoded: those that a cell of a map is the mean over."""
        return len(self.sample) if self._num_queries is None else int(self._num_queries)

    def _opened(self, prefix: str) -> xr.Dataset:
        # Here rather than above: what a run found is shown in a third of the time without them.
        import numpy as np
        import xarray as xr

        from probe.storage.zarr_view import ZarrView

        # Uncached, or a run's traces would fill the memory one after the other.
        dataset: xr.Dataset = xr.open_dataset(
            ZarrView(self._files, prefix),
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
        """Return a statistic, an axis of blocks by its plain name, with the attribute `block_tokens`.

        Raises MissingStatistic naming those that were captured.
        """
        if name not in self.dataset:
            there = ", ".join(map(str, self.dataset.data_vars)) or "none"
            raise MissingStatistic(
                f"the trace {self.unit!r} has no {name!r}; it has {there}. To capture it: "
                f"probe.trace(model, sample, statistics=[{name!r}])"
            )
        array = self.dataset[name]
        for dim in set(array.dims) & set(BLOCK_AXES) & set(array.coords):
            # A trace of format 1 says the size of its blocks by their positions alone.
            if "block_tokens" not in array.attrs and array.sizes[dim] > 1:
                array = array.assign_attrs(block_tokens=int(array[dim].values[1] - array[dim].values[0]))
        return array.rename({dim: plain for dim in map(str, array.dims) if (plain := plain_dim(dim)[0]) != dim})

    def __contains__(self, name: object) -> bool:
        return name in self.dataset

    def __iter__(self) -> Iterator[str]:
        """Go over the names of the statistics, those that `trace[name]` returns."""
        return map(str, self.dataset.data_vars)

    @property
    def folder(self) -> Location | None:
        """The folder of the unit, or its place in object storage; None for a trace in memory, and for a part of one."""
        return self._files.folder if isinstance(self._files, SealedFiles) else None

    def view(self, page: str = "text", *, height: int = 720) -> InlineView:
        """Show the explorer on this trace: in a frame below a notebook's cell, elsewhere as a link.

        This process serves it, to this machine alone, until it ends; a trace in memory is saved to a temporary folder
        for that. `height` is the frame's, in pixels. Raises UsageError naming the pages that there are.
        """
        return self._viewed(page, {}, height)

    def attention(
        self,
        layer: int,
        head: int,
        queries: slice | None = None,
        keys: slice | None = None,
        *,
        height: int = 640,
    ) -> InlineView:
        """Show one head's attention as a map to zoom into, from these positions on or from the whole prompt.

        As `view`, with the page *Attention* alone. Raises UsageError naming the layers, heads or positions that there
        are, MissingStatistic where nothing by head was captured.
        """
        parts = {"layer": str(operator.index(layer)), "head": str(operator.index(head)), "bare": "on"}
        for name, asked in (("queries", queries), ("keys", keys)):
            if asked is not None:
                start = 0 if asked.start is None else operator.index(asked.start)
                stop = self.num_queries if asked.stop is None else operator.index(asked.stop)
                if asked.step not in (None, 1) or not 0 <= start < stop <= self.num_queries:
                    raise UsageError(f"{name} are consecutive positions of 0:{self.num_queries}, not {asked!r}")
                parts[name] = f"{start}-{stop}"
        return self._viewed("attention", parts, height)

    def _viewed(self, page: str, parts: Mapping[str, str], height: int) -> InlineView:
        from probe.storage.inline_view import inline_view

        if isinstance(self._files, PartFiles):
            raise UsageError("a part of a trace is not shown by itself; `window` and `pyramid` return its numbers")
        return inline_view(self, page, parts, visible(f"{self.unit}, {page}"), height)

    def verify(self) -> list[Damage]:
        """Read every byte and return what is not as it was written; empty where all is well, or all is in memory."""
        if isinstance(self._files, PartFiles):
            raise UsageError("a part of a trace is verified with the trace")
        if not isinstance(self._files, SealedFiles):
            return []
        return damage_of(self.unit, self._files.folder, self._files.manifest)

    def save(self, path: Location | str, *, overwrite: bool = False) -> Location:
        """Write the trace as a folder of its own, which `probe.open` reads, and return its path.

        Raises UsageError where something stands there: always if that is not a saved trace, else without `overwrite`.
        """
        if isinstance(self._files, PartFiles):
            raise UsageError("a part of a trace is saved with the trace")
        with saved_trace(path, overwrite=overwrite) as folder:
            self._write(folder)
        return location(path)

    def _write(self, folder: Location) -> None:
        units = folder / "trace.zarr"
        units.mkdir()
        copy = open_files(units / self.unit)
        for path in self._files.paths():
            copy.write(path, self._files.read(path) or b"")
        manifest = hashlib.sha256(copy.seal()).hexdigest()
        write_json(units / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
        Commits.rewrite(folder / "commits.jsonl", {self.unit: {"unit": self.unit, "manifest": manifest}})
        write_trace_json(folder, self.unit)

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

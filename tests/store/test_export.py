"""What is exported is read back by the tools that the form belongs to, and nothing in it runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
import xarray as xr
from typer.testing import CliRunner

from probe.command.cli import app
from probe.errors import UsageError
from probe.sample import Sample
from probe.storage import export
from probe.storage.array import Array
from probe.storage.csv_table import cell
from probe.storage.store import MemoryStore
from probe.storage.unit_trace import Trace

HOSTILE = ["=1+1", "+SUM(A1)", "-2+3", "@cmd", "\tx", "\rx", "plain", 'a,b"c', '=HYPERLINK("http://x")', "\u2028"]


@pytest.fixture
def trace() -> Trace:
    store, rng = MemoryStore(), np.random.default_rng(0)
    with store.begin_unit("u", sample=Sample("=s", (1, 2, 3))) as writer:
        for layer in range(2):
            names = {"span": np.array(HOSTILE)}
            span = Array(("head", "span"), rng.normal(size=(3, 10)), "probability", "Σ", coordinates=names)
            flag = Array(("head",), np.array([True, False, True]))
            keys = Array(("head", "query"), rng.integers(-1, 9, size=(3, 5)), "position")
            writer.write_layer(layer, {"span_mass": span, "flag": flag, "argmax_key": keys})
        bits = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
        kept = Array(("kv_head", "key", "channel"), bits.view(torch.uint16).numpy(), bits_of="bfloat16")
        writer.of_layer(1).write({"key_vector": kept})
        writer.commit()
    return store.trace("u")


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
def test_netcdf_is_read_back_by_xarray(
    trace: Trace, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "h5netcdf":
        pytest.importorskip("h5py")
        pytest.importorskip("h5netcdf")
    else:
        monkeypatch.setattr(export, "find_spec", lambda name: None)
    path = trace.export(tmp_path / "trace.nc", "netcdf")
    with xr.open_dataset(path, engine=engine) as back:
        for name in trace.dataset.data_vars:
            np.testing.assert_array_equal(back[name].values, trace.dataset[name].values)
            assert back[name].dims == trace.dataset[name].dims
        assert back["span_mass"].attrs["unit"] == "probability"
        assert [str(label) for label in back["span"].values] == HOSTILE
    alone = trace.export(tmp_path / "layer.nc", "netcdf", layer=1)
    with xr.open_dataset(alone, engine=engine) as back:
        assert back["key_vector"].dtype == np.float32
        wanted = (trace.layer(1)["key_vector"].values.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(back["key_vector"].values, wanted)


def test_safetensors_are_read_back_by_their_own_library(trace: Trace, tmp_path: Path) -> None:
    path = trace.export(tmp_path / "trace.safetensors", "safetensors")
    back = safetensors.numpy.load_file(path)
    for name in trace.dataset.data_vars:
        np.testing.assert_array_equal(back[name], trace.dataset[name].values)
    with safetensors.safe_open(path, "numpy") as opened:
        about = {name: json.loads(text) for name, text in opened.metadata().items()}
    assert about["span_mass"]["dims"] == ["layer", "head", "span"]
    assert about["span"]["labels"] == HOSTILE
    from safetensors.torch import load_file

    tensors = load_file(trace.export(tmp_path / "layer.safetensors", "safetensors", layer=1))
    wanted = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(tensors["key_vector"], wanted)


def test_tables_hold_every_number_and_no_formula(trace: Trace, tmp_path: Path) -> None:
    path = trace.export(tmp_path / "tables", "csv", heads=[2])
    with (path / "span_mass.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["layer", "head", "span", "span_mass"]
    assert len(rows) == 2 * 10
    for row in rows:
        assert not row[2].startswith(("=", "+", "-", "@", "\t", "\r"))
        name = HOSTILE.index(row[2].removeprefix("'"))
        assert float(row[3]) == trace["span_mass"].values[int(row[0]), int(row[1]), name]
    assert {row[1] for row in rows} == {"2"}
    with (path / "argmax_key.csv").open(newline="", encoding="utf-8") as file:
        numbers = [int(row[3]) for row in list(csv.reader(file))[1:]]
    assert numbers == trace["argmax_key"].values[:, 2].ravel().tolist()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_of_text_is_no_formula_and_a_number_stays_one(text: str) -> None:
    safe = cell(text)
    assert safe.removeprefix("'") == text
    assert not safe.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert (cell(-1.5), cell(-3), cell(None)) == (-1.5, -3, None)


@pytest.mark.parametrize("form", ["netcdf", "csv", "safetensors"])
def test_what_stands_there_stays_and_what_fails_leaves_nothing(
    trace: Trace, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="mine exists"):
        trace.export(tmp_path / "mine", form)
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(UsageError, match=r"no form 'xls'.* netcdf, csv, safetensors"):
        trace.export(tmp_path / "new", "xls")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    for name in ("_write_netcdf", "_write_tables", "write_safetensors"):
        monkeypatch.setattr(export, name, full)
    with pytest.raises(OSError, match="No space"):
        trace.export(tmp_path / "new", form)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("form", ["netcdf", "csv", "safetensors"])
def test_the_command_exports_every_trace_of_a_run_with_an_index(written: Any, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["export", str(written.path), "--out", str(out), "--format", form, "--layers", "0,2"]
    )
    assert done.exit_code == 0, done.output
    with (out / "traces.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["condition"] for row in rows] == ["baseline", "control"]
    assert all((out / row["file"]).exists() for row in rows)
    again = CliRunner().invoke(app, ["export", str(written.path), "--out", str(out), "--format", form])
    assert again.exit_code == 2


@pytest.mark.parametrize(
    "options", [["--format", "xls"], ["--layers", "x"], ["--positions", "5"], ["--positions", "a:b"], ["--heads", "-1"]]
)
def test_options_that_mean_nothing_are_refused_before_anything_is_written(
    written: Any, tmp_path: Path, options: list[str]
) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(written.path), "--out", str(out), *options])
    assert done.exit_code == 2
    assert not out.exists()

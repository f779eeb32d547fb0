"""What is written is what is read, whatever the order, the layers' sizes or the kind of number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.errors import UsageError
from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.storage.store import Array, MemoryStore, RunStore, UnitWriter, clear, unit_id, write_json
from probe.storage.unit_trace import Trace

Write = Callable[..., dict[str, np.ndarray[Any, Any]]]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def in_memory(sample: Sample, fill: Callable[[UnitWriter], Any], **options: Any) -> Trace:
    store = MemoryStore()
    writer = store.begin_unit("unit", sample=sample, **options)
    fill(writer)
    writer.commit()
    return store.trace("unit")


def per_head(*shape: int, dtype: Any = np.float32) -> Array:
    return Array(("head", "query"), np.ones(shape, dtype))


@pytest.mark.parametrize("store_of", [RunStore, lambda path: MemoryStore()], ids=["disk", "memory"])
def test_a_unit_reads_back_as_it_was_written(tmp_path: Path, sample: Sample, write: Write, store_of: Any) -> None:
    store = store_of(tmp_path / "run")
    writer = store.begin_unit(
        "u", stage="read", condition="baseline", facts={"role": "baseline"}, sample=sample, provenance={"seed": 3}
    )
    expected = write(writer)
    outcome = Outcome("a", (1, 2), False, "exact", (float("-inf"), -0.25), float("nan"))
    writer.commit(outcome)
    trace = store.trace("u")
    for name, values in expected.items():
        np.testing.assert_array_equal(trace[name].values, values)
        assert trace[name].dtype == values.dtype
    assert trace["entropy"].dims == ("layer", "head", "query")
    assert trace["entropy"].attrs == {"unit": "nats", "definition": "−Σ p log p", "source": "ours", "merge": ""}
    assert trace["num_heads"].values.tolist() == [4, 2, 6]
    assert trace["span_mass"].sel(span="needle").shape == (3, 6, 2)
    assert trace.dataset["token"].values[0] == 1
    assert (trace.stage, trace.condition, trace.facts) == ("read", "baseline", {"role": "baseline"})
    assert (trace.sample, trace.provenance) == (sample, {"seed": 3})
    assert repr(trace.outcome) == repr(outcome)
    assert store.committed()["u"]["sample"] == sample.name


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
@pytest.mark.parametrize("layer_bytes", [400, 400_000, 3_000_000])
def test_layers_may_come_in_any_order(sample: Sample, order: tuple[int, ...], layer_bytes: int) -> None:
    def fill(writer: UnitWriter) -> None:
        for layer in order:
            values = np.full((layer + 1, layer_bytes // 4 // 5), layer, np.float32)
            writer.write_layer(layer, {"entropy": Array(("head", "query"), values)})

    values = in_memory(sample, fill)["entropy"].values
    for layer in range(5):
        assert (values[layer, : layer + 1] == layer).all()
        assert np.isnan(values[layer, layer + 1 :]).all()


def test_a_buffer_may_be_filled_anew_for_the_next_layer(sample: Sample) -> None:
    def fill(writer: UnitWriter) -> None:
        buffer = np.zeros((1, 4), np.float32)
        for layer in range(3):
            buffer[:] = layer
            writer.write_layer(layer, {"entropy": Array(("head", "query"), buffer)})

    assert in_memory(sample, fill)["entropy"].values[:, 0, 0].tolist() == [0, 1, 2]


def test_arrays_that_lack_layers_or_heads_are_filled_up(sample: Sample) -> None:
    def fill(writer: UnitWriter) -> None:
        writer.write_layer(7, {"entropy": per_head(3, 4), "argmax_key": per_head(3, 4, dtype=np.int32)})
        writer.write_layer(11, {"entropy": per_head(5, 4)})

    trace = in_memory(sample, fill, layers=[3, 7, 11])
    assert trace.dataset["layer"].values.tolist() == [3, 7, 11]
    assert trace["num_heads"].values.tolist() == [-1, 3, 5]
    assert np.isnan(trace["entropy"].sel(layer=3)).all()
    assert trace["argmax_key"].shape == (3, 5, 4)
    assert (trace["argmax_key"].sel(layer=11) == -1).all()


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (0,), (7,)])
def test_every_kind_of_number_keeps_its_type(sample: Sample, dtype: str, shape: tuple[int, ...]) -> None:
    values = np.arange(shape[0]).astype(dtype)
    read = in_memory(sample, lambda writer: writer.write({"loss": Array(("token",), values)}))["loss"].values
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


def test_big_endian_and_strided_values_read_as_the_same_numbers(sample: Sample) -> None:
    values = np.arange(12, dtype=">f4").reshape(3, 4).T
    read = in_memory(sample, lambda writer: writer.write_layer(0, {"entropy": Array(("head", "query"), values)}))
    np.testing.assert_array_equal(read["entropy"].values[0], values)


def test_no_chunk_is_larger_than_16_mib(tmp_path: Path, sample: Sample) -> None:
    with RunStore(tmp_path) as store:
        writer = store.begin_unit("u", sample=sample)
        values = np.arange(5 * 2**20, dtype=np.float64).reshape(40, -1)
        writer.write_layer(0, {"entropy": Array(("head", "query"), values)})
        writer.write({"key_norm": Array(("kv_head", "key"), values)})
        writer.commit()
        assert (store.trace("u")["entropy"].values[0] == values).all()
        assert (store.trace("u")["key_norm"].values == values).all()
    for name in ("entropy", "key_norm"):
        array = zarr.open_array(str(tmp_path / "trace.zarr" / "u" / name), mode="r")
        assert np.prod(array.chunks) * 8 <= 16 * 2**20


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": Array(("heads",), np.ones(2))}, "'heads' is not an axis"),
        ({"x": Array(("head", "head"), np.ones((2, 2)))}, "an axis twice"),
        ({"x": Array(("head",), np.ones((2, 2)))}, "2 axes, but 1 names"),
        ({"x": Array((), np.array(1.0))}, "no axis"),
        ({"x": Array(("head",), np.array(["a"]))}, "can be stored"),
        ({"x": Array(("head",), np.array([None]))}, "can be stored"),
        ({"x": Array(("head",), np.ones(2, np.longdouble))}, "can be stored"),
        ({"x": Array(("layer",), np.ones(2))}, "use `write`"),
        ({"../x": Array(("head",), np.ones(2))}, "cannot name"),
        ({"head": Array(("head",), np.ones(2))}, "cannot name"),
        ({"num_heads": Array(("head",), np.ones(2))}, "the writer's own"),
        ({"x": Array(("span",), np.ones(2), coordinates={"span": np.array(["a"])})}, "2 numbers or strings"),
        ({"x": Array(("span",), np.ones(2), coordinates={"row": np.array([1, 2])})}, "None numbers or strings"),
        ({"x": per_head(2, 3), "y": per_head(4, 3)}, "4 along 'head'"),
    ],
)
def test_what_could_not_be_read_back_is_refused_by_name(sample: Sample, arrays: dict[str, Array], said: str) -> None:
    writer = MemoryStore().begin_unit("u", sample=sample)
    with pytest.raises(UsageError, match=said):
        writer.write_layer(0, arrays)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (per_head(2, 5), "5 along 'query'"),
        (per_head(2, 4, dtype=np.float64), "float64 over head, query"),
        (Array(("query", "head"), np.ones((2, 4), np.float32)), "over query, head"),
    ],
)
def test_a_layer_that_is_not_like_the_others_is_refused(sample: Sample, second: Array, said: str) -> None:
    writer = MemoryStore().begin_unit("u", sample=sample)
    writer.write_layer(0, {"entropy": per_head(2, 4)})
    with pytest.raises(UsageError, match=said):
        writer.write_layer(1, {"entropy": second})


def test_the_same_layer_or_array_twice_is_refused(sample: Sample) -> None:
    writer = MemoryStore().begin_unit("u", sample=sample)
    writer.write_layer(0, {"entropy": per_head(2, 4)})
    writer.write({"loss": Array(("token",), np.ones(2))})
    with pytest.raises(UsageError, match="written already"):
        writer.write_layer(0, {"entropy": per_head(2, 4)})
    for name in ("loss", "entropy"):
        with pytest.raises(UsageError, match="written already"):
            writer.write({name: Array(("token",), np.ones(2))})


@pytest.mark.parametrize("other", [Array(("query",), np.ones(3)), Array(("query",), np.ones(2))])
def test_arrays_that_disagree_about_an_axis_are_refused_and_leave_nothing(
    tmp_path: Path, sample: Sample, other: Array
) -> None:
    with RunStore(tmp_path) as store:
        writer = store.begin_unit("u", sample=sample)
        writer.write_layer(0, {"entropy": per_head(2, 4)})
        writer.write({"other": other})
        with pytest.raises(UsageError, match="along 'query'"):
            writer.commit()
        assert [path.name for path in (tmp_path / "trace.zarr").iterdir()] == ["zarr.json"]
        assert store.committed() == {}


def test_unsigned_numbers_that_would_need_filling_are_refused(sample: Sample) -> None:
    writer = MemoryStore().begin_unit("u", sample=sample)
    writer.write_layer(0, {"x": per_head(2, 4, dtype=np.uint8)})
    with pytest.raises(UsageError, match="take a signed one"):
        writer.write_layer(1, {"x": per_head(3, 4, dtype=np.uint8)})
    writer.write_layer(2, {"x": per_head(2, 4, dtype=np.uint8)})
    with pytest.raises(UsageError, match="take a signed one"):
        writer.commit()


@settings(max_examples=40, deadline=None)
@given(
    name=st.text(max_size=20),
    text=st.text(st.characters(), max_size=30),
    tokens=st.lists(st.integers(0, 2**31), max_size=20),
    facts=st.dictionaries(st.text(max_size=5), JSON, max_size=4),
)
def test_any_sample_comes_back_equal(name: str, text: str, tokens: list[int], facts: dict[str, Any]) -> None:
    sample = Sample(name, tuple(tokens), (Span(text, 0, len(tokens)),), tuple(tokens[:2]), text, text, facts)
    trace = in_memory(sample, lambda writer: None, facts={"of the sample": facts})
    assert trace.sample == sample
    assert trace.facts == {"of the sample": facts}


@pytest.mark.parametrize("facts", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_facts_that_are_not_json_are_refused_before_a_folder_is_made(
    tmp_path: Path, sample: Sample, facts: dict[str, Any]
) -> None:
    with RunStore(tmp_path) as store:
        with pytest.raises(UsageError, match="not a JSON value"):
            store.begin_unit("u", sample=sample, facts=facts)
        assert [path.name for path in (tmp_path / "trace.zarr").iterdir()] == ["zarr.json"]


@pytest.mark.parametrize("unit", ["", "..", ".hidden", "a/b", "A", "a" * 122, "-a", "a\n", "ä"])
def test_a_unit_that_could_leave_its_folder_is_refused(tmp_path: Path, sample: Sample, unit: str) -> None:
    with RunStore(tmp_path) as store, pytest.raises(UsageError, match="cannot name a unit"):
        store.begin_unit(unit, sample=sample)


@pytest.mark.parametrize("prefix", ["Baseline needle-256-0.50-s3", "", "…", "x" * 500, "../../etc", "a\nb"])
def test_unit_ids_are_names_of_folders_and_depend_on_the_identity_alone(tmp_path: Path, prefix: str) -> None:
    one, other = unit_id(prefix, {"a": 1, "b": [2]}), unit_id(prefix, {"b": [2], "a": 1})
    assert one == other != unit_id(prefix, {"a": 1, "b": [3]})
    with RunStore(tmp_path) as store:
        store.begin_unit(one, sample=Sample("s", ())).abandon()


def test_an_abandoned_or_uncommitted_unit_does_not_exist(tmp_path: Path, sample: Sample, write: Write) -> None:
    with RunStore(tmp_path) as store:
        with store.begin_unit("a", sample=sample) as writer:
            write(writer)
        assert not (tmp_path / "trace.zarr" / "a").exists()
        write(store.begin_unit("b", sample=sample))
        assert store.committed() == {}
        with pytest.raises(UsageError, match="no unit 'b'"):
            store.trace("b")


def test_clear_removes_a_run_and_nothing_else(written: Any) -> None:
    (written.path / "notes.txt").write_text("mine")
    clear(written.path)
    assert sorted(path.name for path in written.path.iterdir()) == [".lock", "notes.txt"]


def test_clear_leaves_what_others_put_among_the_units(written: Any) -> None:
    units = written.path / "trace.zarr"
    (units / "notes").mkdir()
    (units / "notes" / "a.txt").write_text("mine")
    (units / "todo.txt").write_text("mine")
    clear(written.path)
    assert sorted(path.name for path in units.rglob("*")) == ["a.txt", "notes", "todo.txt"]
    with RunStore(written.path) as store:
        store.begin_unit("u", sample=Sample("s", (1,))).commit()
        assert store.trace("u").verify() == []


def test_a_writer_leaves_folders_that_no_writer_made(written: Any, sample: Sample) -> None:
    notes = written.path / "trace.zarr" / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("mine")
    with RunStore(written.path) as store:
        with pytest.raises(UsageError, match="notes is where unit 'notes' belongs"):
            store.begin_unit("notes", sample=sample)
        store.begin_unit("half", sample=sample)
    assert (notes / "a.txt").read_text() == "mine"
    (written.path / "trace.zarr" / "empty").mkdir()
    with RunStore(written.path) as store:
        for unit in ("half", "empty"):
            store.begin_unit(unit, sample=sample).commit()


@pytest.mark.parametrize("at", range(1, 12, 2))
def test_a_clear_that_is_killed_can_be_done_again(written: Any, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    write_json(written.path / "run.json", {"format": 1, "identity": {}})
    unlink, left = Path.unlink, iter(range(at))

    def killed(path: Path, missing_ok: bool = False) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            clear(written.path)
    assert (written.path / "run.json").is_file()
    clear(written.path)
    assert [path.name for path in written.path.iterdir()] == [".lock"]


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": "·\ud800"})
    assert json.loads(path.read_bytes()) == {"a": "·\ud800"}
    with pytest.raises(UsageError, match=r"run\.json cannot hold this"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_bytes()) == {"a": "·\ud800"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_other_readers_of_zarr_see_the_names_of_the_axes_and_the_numbers(written: Any) -> None:
    array = zarr.open_array(str(written.folder() / "entropy"), mode="r")
    assert array.metadata.dimension_names == ("layer", "head", "query")
    np.testing.assert_array_equal(array[...], written.values["entropy"])


_ONE_GIB = """
import resource, sys
import numpy as np
from probe.storage.store import Array, RunStore
from probe.sample import Sample
import xarray, zarr
store = RunStore(sys.argv[1])
values = np.random.default_rng(0).random((32, 2**18), dtype=np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
writer = store.begin_unit("u", sample=Sample("s", (1,)))
for layer in range(32):
    values[0, 0] = layer
    writer.write_layer(layer, {"entropy": Array(("head", "query"), values)})
writer.commit()
written = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
entropy = store.trace("u")["entropy"]
for layer in range(32):
    assert entropy[layer].values[0, 0] == layer
read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((written - before) / 1024, (read - before) / 1024)
"""


@pytest.mark.slow
def test_a_gibibyte_is_written_and_read_within_256_mib(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", _ONE_GIB, str(tmp_path)], env=environment, check=True, capture_output=True, text=True
    )
    written, read = map(float, done.stdout.split())
    assert written < 256
    assert read < 256


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64"])
def test_an_array_is_described_as_zarr_itself_describes_it(tmp_path: Path, sample: Sample, dtype: str) -> None:
    with RunStore(tmp_path / "run") as store:
        writer = store.begin_unit("u", sample=sample)
        writer.write({"x": Array(("head", "query"), np.ones((2, 3), dtype))})
        writer.commit()
    zarr.create_array(
        str(tmp_path / "theirs"),
        shape=(2, 3),
        chunks=(2, 3),
        dtype=dtype,
        compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
        fill_value={"f": float("nan"), "i": -1, "u": 0, "b": False}[np.dtype(dtype).kind],
        dimension_names=("head", "query"),
        attributes={"unit": "", "definition": "", "source": "", "merge": ""},
    )[...] = np.ones((2, 3), dtype)
    ours, theirs = tmp_path / "run" / "trace.zarr" / "u" / "x", tmp_path / "theirs"
    assert json.loads((ours / "zarr.json").read_text()) == json.loads((theirs / "zarr.json").read_text())
    assert (ours / "c" / "0" / "0").read_bytes() == (theirs / "c" / "0" / "0").read_bytes()

"""A trace that is written as the prompt goes through is the trace that would have been written at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

import probe
from probe.capture import read
from probe.errors import UsageError
from probe.kernels.scan import Scan
from probe.kernels.token_scan import TokenScan
from probe.reader import Reader
from probe.sample import Sample, Span
from probe.storage import growing_array
from probe.storage.array import Array
from probe.storage.group_writer import GroupWriter
from probe.storage.store import MemoryStore, RunStore
from probe.storage.unit_trace import Trace

EVERYTHING = [
    "log_sum_exp", "entropy", "max_probability", "offset_mass", "match_mass", "distance_histogram", "received_mass",
    {"received_mass": {"horizon": 8}}, "attention_map", {"attention_map": {"grid": 16, "layers": [1]}}, "top_keys",
    "span_mass", "key_norm", "value_norm", "residual_norm", "loss", {"queries_and_keys": [0]},
]  # fmt: skip


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few hundred bytes, so that short prompts fill many."""
    monkeypatch.setattr(growing_array, "CHUNK_BYTES", 512)


def unstreamed(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Scan, TokenScan):
        monkeypatch.setattr(kind, "drain", lambda self: {})


def assert_equal(one: Trace, other: Trace) -> None:
    groups = [(one.dataset, other.dataset), (one.layer(0), other.layer(0)), (one.layer(1), other.layer(1))]
    for a, b in groups:
        assert set(a.variables) == set(b.variables)
        for name in a.variables:
            np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=str(name))
            assert a[name].attrs == b[name].attrs


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return probe.load(AutoModelForCausalLM.from_config(config))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.sampled_from([1, 2, 15, 129, 140]),
    chunk_tokens=st.integers(5, 150),
    pool_tokens=st.sampled_from([None, 4, 64]),
)
def test_whatever_the_chunks_the_streamed_trace_has_the_bits_of_the_other(
    model: Any, small_chunks: None, length: int, chunk_tokens: int, pool_tokens: int | None
) -> None:
    tokens = torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(length))
    sample = Sample("s", tuple(tokens.tolist()), (Span("needle", 0, 1),))
    options: dict[str, Any] = {"statistics": EVERYTHING, "pool_tokens": pool_tokens, "max_new_tokens": 3}
    streamed = probe.trace(model, sample, chunk_tokens=chunk_tokens, **options)
    with pytest.MonkeyPatch.context() as patch:
        unstreamed(patch)
        whole = probe.trace(model, sample, chunk_tokens=chunk_tokens, **options)
    assert_equal(streamed, whole)


def test_finished_parts_are_on_the_disk_before_the_prompt_ends(
    model: Any, small_chunks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    hand_over = Reader._hand_over

    def counted(reader: Reader) -> None:
        hand_over(reader)
        found.append(sum(1 for path in tmp_path.rglob("c/**/*") if path.is_file()))

    monkeypatch.setattr(Reader, "_hand_over", counted)
    sample = Sample("s", tuple(i % 50 for i in range(200)))
    with RunStore(tmp_path) as store, store.begin_unit("u", sample=sample) as writer:
        writer.commit(read(model, sample, ["entropy", "residual_norm"], writer, chunk_tokens=50))
        assert store.trace("u").verify() == []
    assert len(found) == 4
    assert all(after > before for before, after in pairwise(found))


def test_a_trace_is_written_where_it_is_asked_for(model: Any, tmp_path: Path) -> None:
    tokens = [i % 50 for i in range(70)]
    here = probe.trace(model, tokens, statistics=["entropy"])
    there = probe.trace(model, tokens, statistics=["entropy"], out=tmp_path / "trace")
    np.testing.assert_array_equal(here["entropy"].values, there["entropy"].values)
    assert there.verify() == []
    with pytest.raises(UsageError, match="overwrite=True"):
        probe.trace(model, tokens, statistics=["entropy"], out=tmp_path / "trace")
    probe.trace(model, tokens, statistics=["loss"], out=tmp_path / "trace", overwrite=True)
    opened = probe.open(tmp_path / "trace")
    assert isinstance(opened, Trace)
    assert "loss" in opened
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]


def test_a_capture_that_fails_leaves_nothing_behind(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"attention_map: .* no attention layer 7; it has 0, 1"):
        probe.trace(model, [1, 2], statistics=[{"attention_map": {"layers": [7]}}], out=tmp_path / "trace")
    assert list(tmp_path.iterdir()) == []


parts = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=parts, heads=st.sampled_from([(3, 3), (2, 4), (4, 1)]), dtype=st.sampled_from(["float32", "int64"]))
def test_parts_of_any_length_join_in_every_layer(
    small_chunks: None, cuts: list[int], heads: tuple[int, int], dtype: str
) -> None:
    store, total = MemoryStore(), sum(cuts)
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=(n, total)) * 100).astype(dtype) for n in heads]
    with store.begin_unit("u", sample=Sample("s", (1,))) as writer:
        start = 0
        for length in cuts:
            positions = {"query": np.arange(start, start + length)}
            for layer, values in enumerate(layers):
                part = Array(("head", "query"), values[:, start : start + length], coordinates=positions)
                writer.append_layer(layer, {"entropy": part}, "query")
            start += length
        writer.commit()
    trace = store.trace("u")
    missing = np.nan if dtype == "float32" else -1
    for layer, values in enumerate(layers):
        read_back = trace["entropy"].values[layer]
        np.testing.assert_array_equal(read_back[: len(values)], values)
        np.testing.assert_array_equal(read_back[len(values) :], missing)
    assert trace.dataset["query"].values.tolist() == list(range(total))
    assert trace["num_heads"].values.tolist() == list(heads)


def test_short_arrays_make_the_files_that_whole_ones_make() -> None:
    whole, grown = MemoryStore(), MemoryStore()
    values = np.random.default_rng(0).normal(size=(2, 4, 60)).astype(np.float32)
    for store in (whole, grown):
        with store.begin_unit("u", sample=Sample("s", (1,))) as writer:
            for cut in [slice(None)] if store is whole else [slice(0, 7), slice(7, 60)]:
                for layer in range(2):
                    part = {"entropy": Array(("head", "query"), values[layer][:, cut])}
                    if store is whole:
                        writer.write_layer(layer, part)
                    else:
                        writer.append_layer(layer, part, "query")
            writer.commit()
    files = [{path: store._files["u"].read(path) for path in store._files["u"].paths()} for store in (whole, grown)]
    assert files[0] == files[1]


def part(length: int = 3, heads: int = 2, dtype: str = "float32", start: int | None = None) -> Array:
    coordinates = {} if start is None else {"query": np.arange(start, start + length)}
    return Array(("head", "query"), np.zeros((heads, length), dtype), coordinates=coordinates)


@pytest.mark.parametrize(
    ("second", "axis", "said"),
    [
        (part(dtype="float64"), "query", "is float64"),
        (part(heads=3), "query", "has 3 along 'head'"),
        (part(), "key", "cannot grow along 'key'"),
        (Array(("layer", "query"), np.zeros((1, 3), np.float32)), "query", "layer axis of its own"),
    ],
)
def test_a_part_that_does_not_continue_the_last_is_refused(second: Array, axis: str, said: str) -> None:
    with MemoryStore().begin_unit("u", sample=Sample("s", (1,))) as writer:
        writer.append_layer(0, {"x": part(start=0)}, "query")
        with pytest.raises(UsageError, match=said):
            writer.append_layer(0, {"x": second}, axis)


def test_layers_at_different_positions_are_refused() -> None:
    with MemoryStore().begin_unit("u", sample=Sample("s", (1,))) as writer:
        writer.append_layer(0, {"x": part(start=0)}, "query")
        with pytest.raises(UsageError, match="another coordinate for 'query'"):
            writer.append_layer(1, {"x": part(start=9)}, "query")


def test_layers_that_end_at_different_lengths_are_refused() -> None:
    writer = MemoryStore().begin_unit("u", sample=Sample("s", (1,)))
    writer.append_layer(0, {"x": part(3)}, "query")
    writer.append_layer(1, {"x": part(4)}, "query")
    with pytest.raises(UsageError, match="end at different lengths along 'query'"):
        writer.commit()


@pytest.mark.parametrize("how", ["write", "write_layer", "append", "append_layer"])
def test_a_name_is_taken_however_it_was_written(how: str) -> None:
    with MemoryStore().begin_unit("u", sample=Sample("s", (1,))) as writer:
        writer.append_layer(0, {"x": part()}, "query")
        writer.append({"y": part()}, "query")
        for name in {"x", "y"} - ({"x"} if how == "append_layer" else {"y"} if how == "append" else set()):
            arguments: dict[str, Any] = {"axis": "query"} if how.startswith("append") else {}
            layer = [0] if how.endswith("layer") else []
            with pytest.raises(UsageError, match="written already"):
                getattr(writer, how)(*layer, {name: part()}, **arguments)
        with pytest.raises(UsageError, match="no place for 'surplus'"):
            writer.note(surplus=1)
        assert isinstance(writer.of_layer(3), GroupWriter)


_DIES = """
import os, sys
import numpy as np
from probe.storage import growing_array
from probe.storage.store import Array, RunStore
from probe.sample import Sample
growing_array.CHUNK_BYTES = 512
with RunStore(sys.argv[1]) as store:
    writer = store.begin_unit("u", sample=Sample("s", (1, 2)))
    for number in range(12):
        values = np.full((2, 50), number, np.float32)
        writer.append_layer(0, {"entropy": Array(("head", "query"), values)}, "query")
        writer.of_layer(0).append({"key_vector": Array(("kv_head", "key"), values)}, "key")
        if number == int(sys.argv[2]):
            os._exit(9)
    writer.commit()
"""


@pytest.mark.parametrize("at", [0, 5, 11])
def test_a_writer_that_dies_between_two_parts_leaves_nothing_to_read(tmp_path: Path, at: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def run(folder: Path, dies: int) -> int:
        command = [sys.executable, "-c", _DIES, str(folder), str(dies)]
        return subprocess.run(command, env=environment, check=False).returncode

    assert run(tmp_path / "run", at) == 9
    assert RunStore(tmp_path / "run").committed() == {}
    assert run(tmp_path / "run", -1) == run(tmp_path / "undisturbed", -1) == 0

    def contents(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    assert contents(tmp_path / "run") == contents(tmp_path / "undisturbed")
    trace = RunStore(tmp_path / "run").trace("u")
    assert trace["entropy"].values[0, 0].tolist() == [float(n) for n in range(12) for _ in range(50)]


def test_blocks_of_several_sizes_lie_in_one_trace(model: Any) -> None:
    """Pooled entropies and the map have blocks of different sizes from 32,768 tokens on."""
    requests = ["entropy", {"attention_map": {"grid": 8}}, {"attention_map": {"grid": 16}}, "received_mass"]
    trace = probe.trace(model, [i % 50 for i in range(129)], statistics=requests, pool_tokens=4)
    assert trace["entropy"].dims == ("layer", "head", "query_block")
    assert trace["entropy"]["query_block"].values.tolist() == list(range(0, 129, 4))
    assert trace["attention_map_grid_8"]["key_block"].values.tolist() == list(range(0, 129, 32))
    assert trace["attention_map_grid_16"].attrs["block_tokens"] == 16
    assert trace.levels(0) == (16, 32, 64, 128, 256)

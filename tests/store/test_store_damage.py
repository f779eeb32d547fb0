"""Damage on disk is found every time and named, and what a hostile folder claims costs nothing."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import Zstd

from probe.errors import StoreCorrupt
from probe.storage.commits import Commits
from probe.storage.durable import canonical_json
from probe.storage.run_folder import Run
from probe.storage.store import Array, RunStore
from probe.storage.trace_store import open as open_store
from probe.storage.unit_trace import Trace
from tests.reliability.figures import Measured


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def first_trace(run: Path) -> Trace:
    return next(Run(run).traces())


@pytest.mark.parametrize("seed", range(100))
def test_one_flipped_bit_in_any_file_of_a_unit_is_found_and_named(written: Any, seed: int) -> None:
    rng = random.Random(seed)
    files = sorted(path for path in written.folder().rglob("*") if path.is_file() and path.stat().st_size)
    target = rng.choice(files)
    flip(target, rng)
    (damage,) = Run(written.path).verify()
    assert damage.unit == written.units[0]
    assert damage.path == str(target.relative_to(written.folder()))
    if "c" in target.parts:
        assert damage.chunk == damage.path.partition("/c/")[2]
        assert f"array {damage.array}, chunk {damage.chunk}" in str(damage)


@pytest.mark.parametrize("seed", range(30))
def test_one_flipped_bit_in_a_chunk_is_an_error_when_it_is_read(written: Any, seed: int) -> None:
    rng = random.Random(seed)
    target = rng.choice([path for path in sorted(written.folder().rglob("c/**/0")) if path.is_file()])
    name, _, _ = target.relative_to(written.folder()).as_posix().partition("/c/")
    trace = first_trace(written.path)
    flip(target, rng)
    *group, array = name.split("/")
    with pytest.raises(StoreCorrupt, match=f"array {name}, chunk 0"):
        (trace.layer(int(group[1])) if group else trace.dataset)[array].load()


@pytest.mark.parametrize("name", ["entropy", "loss", "span_mass", "layer"])
def test_a_lost_chunk_is_an_error_and_never_fill_values(written: Any, name: str) -> None:
    trace = first_trace(written.path)
    shutil.rmtree(written.folder() / name / "c")
    with pytest.raises(StoreCorrupt, match=f"array {name}, chunk 0"):
        trace[name].load()
    with pytest.raises(StoreCorrupt, match=f"array {name}, chunk 0.* is missing"):
        first_trace(written.path)
    (damage,) = Run(written.path).verify()
    assert (damage.array, damage.problem) == (name, "is missing")


def test_swapped_chunks_are_found_and_each_is_named(tmp_path: Path, sample: Any) -> None:
    with RunStore(tmp_path) as store:
        writer = store.begin_unit("u", sample=sample)
        rng = np.random.default_rng(0)
        for layer in range(2):
            writer.write_layer(layer, {"entropy": Array(("head", "query"), rng.random((4, 2**17), dtype=np.float32))})
        writer.commit()
        trace = store.trace("u")
    one, other = sorted((tmp_path / "trace.zarr" / "u" / "entropy" / "c").glob("*/0/0"))
    aside = tmp_path / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    assert [str(damage) for damage in trace.verify()] == [
        "unit u: array entropy, chunk 0/0/0 holds what was written as array entropy, chunk 1/0/0",
        "unit u: array entropy, chunk 1/0/0 holds what was written as array entropy, chunk 0/0/0",
    ]
    with pytest.raises(StoreCorrupt, match="array entropy, chunk 1/0/0"):
        trace["entropy"][1].load()


def test_units_that_changed_places_are_found(written: Any) -> None:
    one, other = (written.folder(unit) for unit in written.units)
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)
    assert [damage.unit for damage in Run(written.path).verify()] == list(written.units)
    with pytest.raises(StoreCorrupt, match="not the manifest that was committed"):
        first_trace(written.path)


def test_a_whole_unit_that_is_gone_is_named(written: Any) -> None:
    shutil.rmtree(written.folder())
    (damage,) = Run(written.path).verify()
    assert written.units[0] in str(damage)
    with pytest.raises(StoreCorrupt, match=written.units[0]):
        first_trace(written.path)


def test_files_beside_those_written_change_nothing(written: Any) -> None:
    (written.folder() / ".DS_Store").write_bytes(b"x")
    (written.folder() / "entropy" / "c" / "9").mkdir()
    (written.folder() / "entropy" / "c" / "9" / "0").write_bytes(b"x")
    assert Run(written.path).verify() == []
    np.testing.assert_array_equal(first_trace(written.path)["entropy"].values, written.values["entropy"])


def test_the_record_cut_at_every_byte_drops_the_torn_entry_alone(written: Any, measured: Measured) -> None:
    path = written.path / "commits.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        commits = Commits(path)
        assert list(commits.units) == list(written.units)[: (cut >= first) + (cut == len(whole))]
        assert commits.torn == (cut not in (0, first, len(whole)))
    measured("record cut", f"cut at each of {len(whole) + 1} bytes: opens, with every whole entry and no torn one")


@pytest.mark.parametrize("rest", [b'{"che', b"\0" * 40, b'{"che\0\0\0\0\n'])
def test_a_writer_goes_on_where_a_torn_entry_began(written: Any, sample: Any, rest: bytes) -> None:
    path = written.path / "commits.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    assert [str(damage) for damage in Run(written.path).verify()] == [
        "commits.jsonl ends in a torn entry, which does not count"
    ]
    with RunStore(written.path) as store:
        store.begin_unit("next", sample=sample).commit()
    assert path.read_bytes().startswith(whole)
    assert list(Commits(path).units) == [*written.units, "next"]
    assert Commits(path).torn == 0


def test_a_flipped_bit_in_the_record_is_never_taken_for_the_truth(written: Any) -> None:
    path = written.path / "commits.jsonl"
    whole = path.read_bytes()
    for index in range(len(whole)):
        data = bytearray(whole)
        data[index] ^= 1 << (index % 8)
        path.write_bytes(data)
        # The very last newline alone: without it the entry looks torn, and does not count.
        if index == len(whole) - 1:
            assert (list(Commits(path).units), Commits(path).torn) == ([written.units[0]], 1)
            continue
        line = 1 if index <= whole.index(b"\n") else 2
        # A byte that became 0 in the last line is what a crash leaves.
        if data[index] == 0 and line == 2:
            assert Commits(path).torn == 1
            continue
        with pytest.raises(StoreCorrupt, match=f"line [{line}{'1' if data[index] == 10 else ''}]"):
            Commits(path)


def test_an_entry_twice_is_refused(written: Any) -> None:
    path = written.path / "commits.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(StoreCorrupt, match="line 3: unit 'baseline-a' was committed before"):
        Commits(path)


def reseal(run: Path, unit: str, files: list[list[Any]] | None = None, **manifest: Any) -> None:
    """Make manifest and record agree with what a hostile hand put into the unit."""
    folder = run / "trace.zarr" / unit
    outside = ("manifest.json", ".probe-unit")
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.name not in outside)
    listed = [[str(p.relative_to(folder)), p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()] for p in paths]
    data = canonical_json({"format": 1, "files": listed + (files or []), **manifest}).encode() + b"\n"
    (folder / "manifest.json").write_bytes(data)
    (run / "commits.jsonl").unlink()
    Commits(run / "commits.jsonl").append({"unit": unit, "manifest": hashlib.sha256(data).hexdigest()})


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array.update(shape=[10**12, 6, 64]),
        lambda array: array.update(shape=[3, 6, 10**18]),
        lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=[10**4, 10**4, 64]),
        lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=[0, 6, 64]),
        lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=[3, 6]),
        lambda array: array.update(shape=[-3, 6, 64]),
        lambda array: array.update(shape=[True, 6, 64]),
        lambda array: array.update(shape="366"),
        lambda array: array.update(shape=None),
        lambda array: array.update(data_type="object"),
        lambda array: array.update(
            data_type={"name": "null_terminated_bytes", "configuration": {"length_bytes": 10**12}}
        ),
        lambda array: array.update(codecs=[{"name": "bytes", "configuration": {"endian": "little"}}]),
        lambda array: array.update(codecs=[*array["codecs"], {"name": "numcodecs.pickle"}]),
        lambda array: array.update(codecs=[{"name": "sharding_indexed", "configuration": {}}]),
        lambda array: array.update(codecs=7),
        lambda array: array.update(storage_transformers=[{"name": "x"}]),
        lambda array: array.update(chunk_key_encoding={"name": "v2", "configuration": {"separator": "."}}),
        lambda array: array.update(zarr_format=2),
        lambda array: array.update(node_type="group"),
        lambda array: array.clear(),
    ],
)
def test_an_array_that_claims_what_is_not_there_is_refused_at_once(written: Any, change: Change) -> None:
    described = written.folder() / "entropy" / "zarr.json"
    array = json.loads(described.read_text())
    change(array)
    described.write_text(json.dumps(array))
    reseal(written.path, written.units[0])
    tracemalloc.start()
    try:
        with pytest.raises(StoreCorrupt, match="array entropy"):
            first_trace(written.path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "chunk",
    [
        Zstd(level=1, checksum=True).encode(bytes(64 * 2**20)),
        b"\x28\xb5\x2f\xfd\xe0" + (2**60).to_bytes(8, "little"),
        b"\x28\xb5\x2f\xfd\x00\x58" + bytes(20),
        b"not zstd",
        b"",
    ],
    ids=["64 MiB of zeros", "says 2^60", "says nothing", "no frame", "empty"],
)
def test_a_chunk_that_unpacks_to_more_than_a_chunk_is_refused(written: Any, chunk: bytes) -> None:
    (written.folder() / "entropy" / "c" / "0" / "0" / "0").write_bytes(chunk)
    reseal(written.path, written.units[0])
    trace = first_trace(written.path)
    with pytest.raises(StoreCorrupt, match="array entropy, chunk 0/0/0 does not unpack"):
        trace["entropy"].load()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../run.json", "entropy/../../x", "a//b", "", ".", "a/..", "a\\b", "~"]
)
def test_a_manifest_that_leads_out_of_its_unit_is_refused(written: Any, path: str) -> None:
    reseal(written.path, written.units[0], [[path, 1, "0" * 64]])
    with pytest.raises(StoreCorrupt, match="leads out of the unit"):
        first_trace(written.path)


@pytest.mark.parametrize("row", [["x"], ["x", -1, "0" * 64], ["x", 1, "0"], ["x", 1.5, "0" * 64], {"x": 1}, None])
def test_a_manifest_of_another_form_is_refused(written: Any, row: Any) -> None:
    reseal(written.path, written.units[0], [row])
    with pytest.raises(StoreCorrupt, match="not an entry"):
        first_trace(written.path)


def test_json_nested_without_end_is_refused(written: Any) -> None:
    (written.folder() / "sample.json").write_bytes(b"[" * 10**6)
    reseal(written.path, written.units[0])
    with pytest.raises(StoreCorrupt, match=r"sample\.json is not JSON"):
        _ = first_trace(written.path).sample


@pytest.mark.parametrize("target", ["entropy/c/0/0/0", "entropy/c", "entropy", "manifest.json", "extra", ""])
def test_links_are_refused_wherever_they_stand(written: Any, tmp_path: Path, target: str) -> None:
    path = written.folder() / target
    if path.exists():
        path.rename(tmp_path / "moved")
    else:
        (tmp_path / "moved").write_text("secret")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(StoreCorrupt, match="link"):
        first_trace(written.path)


def test_a_pipe_in_place_of_a_chunk_does_not_hang(written: Any) -> None:
    trace = first_trace(written.path)
    chunk = written.folder() / "entropy" / "c" / "0" / "0" / "0"
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(StoreCorrupt):
        trace["entropy"].load()
    with pytest.raises(StoreCorrupt):
        first_trace(written.path)


def test_a_newer_format_is_refused_and_both_versions_are_named(written: Any) -> None:
    reseal(written.path, written.units[0], format=3)
    with pytest.raises(StoreCorrupt, match=r"format version 3.* up to 2"):
        first_trace(written.path)
    (written.path / "run.json").write_text('{"format": 7}')
    with pytest.raises(StoreCorrupt, match=r"format version 7.* up to 1"):
        open_store(written.path)

"""What lies in object storage, key by key: the commit record, who may write, and what a hostile store is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import probe
from probe.errors import RunFolderInUse, StoreCorrupt, StoreUnreachable, UsageError
from probe.storage import commit_segments, object_lease, object_path
from probe.storage.array import Array
from probe.storage.checking import check_run, forget
from probe.storage.hold import abandoned, hold
from probe.storage.object_path import ObjectPath, location
from probe.storage.seal import write_record
from probe.storage.store import MemoryStore, RunStore, clear
from tests.store.conftest import OUTCOME, make_sample, write_unit
from tests.store.object_server import Watched

URL = "memory://bucket/run"


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> Watched:
    made = Watched()
    monkeypatch.setattr(object_path, "file_system", lambda protocol: made)
    return made


def keys(files: Watched) -> list[str]:
    return sorted(key.removeprefix("/bucket/run/") for key in files.store)


def written(*units: str) -> ObjectPath:
    folder = location(URL)
    with RunStore(folder) as store:
        for unit in units:
            writer = store.begin_unit(unit, sample=make_sample())
            write_unit(writer)
            writer.commit(OUTCOME)
    assert isinstance(folder, ObjectPath)
    write_record(folder, {"format": 1, "status": "stopped", "identity": {}})
    return folder


def small(store: RunStore, unit: str) -> None:
    writer = store.begin_unit(unit, sample=make_sample())
    writer.write({"loss": Array(("token",), np.arange(3.0))})
    writer.commit(OUTCOME)


def test_lines_lie_in_objects_of_their_own_and_are_gathered(files: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_segments, "GATHERED", 4)
    names = [f"unit-{i:02d}" for i in range(11)]
    with RunStore(URL) as store:
        for i, unit in enumerate(names):
            small(store, unit)
            assert list(RunStore(URL).committed()) == names[: i + 1]
        record = [key for key in keys(files) if key.startswith("commits")]
        assert record == [f"commits/{number:08d}.jsonl" for number in (0, 4, 8, 9, 10)]
    assert [key for key in keys(files) if key.startswith("commits")] == ["commits.jsonl"]
    assert files.store["/bucket/run/commits.jsonl"].getvalue().count(b"\n") == 11
    with RunStore(URL) as store:
        small(store, "unit-11")
        store.forget(names[2:])
    assert list(RunStore(URL).committed()) == [*names[:2], "unit-11"]


def test_what_a_session_could_not_gather_the_next_gathers_though_it_writes_nothing(files: Watched) -> None:
    store = RunStore(URL)
    small(store, "a")
    store._free()
    assert "commits.jsonl" not in keys(files)
    with hold(URL), RunStore(URL):
        pass
    assert [key for key in keys(files) if key.startswith("commits")] == ["commits.jsonl"]
    assert list(RunStore(URL).committed()) == ["a"]


def test_a_run_is_let_go_though_its_record_cannot_be_gathered(files: Watched) -> None:
    store = RunStore(URL)
    small(store, "a")
    files.down = True
    with pytest.raises(StoreUnreachable):
        store.close()
    files.down = False
    assert not object_lease.is_held(location(URL))  # type: ignore[arg-type]
    with RunStore(URL) as again:
        small(again, "b")
    assert list(RunStore(URL).committed()) == ["a", "b"]


def test_a_line_that_is_missing_is_named_and_its_units_are_not_taken_for_unwritten(files: Watched) -> None:
    store = RunStore(URL)
    for unit in ("a", "b", "c"):
        small(store, unit)
    files.rm("/bucket/run/commits/00000001.jsonl")
    with pytest.raises(StoreCorrupt, match=r"commits/00000001\.jsonl is missing"):
        RunStore(URL)
    # Two of the same number: the first one stands.
    with pytest.raises(RunFolderInUse, match="another process"):
        commit_segments.CommitSegments(location(URL) / "commits.jsonl").append(b"{}\n", 2)  # type: ignore[arg-type]
    store._free()


def test_a_second_writer_is_refused_by_the_name_of_the_first(files: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(URL), hold(URL):
        with monkeypatch.context() as another:
            another.setattr(object_lease, "_held", {})
            with pytest.raises(RunFolderInUse, match=rf"process {os.getpid()} on {socket.gethostname()}"), hold(URL):
                pass
        assert not abandoned(URL)
    assert keys(files) == []


def lease(**told: Any) -> dict[str, Any]:
    here = {"host": socket.gethostname(), "process": os.getpid(), "processes": object_lease._processes()}
    return {**here, "token": "somebody's", "renewed": object_lease.time.time(), **told}


def put_lease(files: Watched, **told: Any) -> None:
    files.pipe_file("/bucket/run/.lease/00000004.json", json.dumps(lease(**told)).encode())


@pytest.mark.parametrize("how", ["its process has ended", "it was silent for too long"])
def test_a_stale_holder_is_taken_over(files: Watched, how: str) -> None:
    if how == "its process has ended":
        ended = subprocess.Popen(["true"])
        ended.wait()
        put_lease(files, process=ended.pid)
    else:
        put_lease(files, host="elsewhere", renewed=object_lease.time.time() - object_lease.SILENT_FOR - 1)
    assert abandoned(URL)
    with hold(URL):
        assert keys(files) == [".lease/00000005.json"]
    assert keys(files) == []


@pytest.mark.parametrize("told", [{"host": "elsewhere"}, {"processes": "another container's"}])
def test_who_may_still_be_at_it_is_left_at_it(files: Watched, told: dict[str, Any]) -> None:
    put_lease(files, **told, process=2**22 + 1)
    with pytest.raises(RunFolderInUse, match="of silence it can be taken over"), hold(URL):
        pass
    files.pipe_file("/bucket/run/.lease/00000004.json", b"[]")
    with pytest.raises(RunFolderInUse, match="was not written by a run"), hold(URL):
        pass


def test_who_was_silent_and_taken_over_writes_nothing_more(files: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(URL)
    small(store, "a")
    now = object_lease.time.time()
    # The other takes over after its silence; then it wakes.
    files.pipe_file("/bucket/run/.lease/00000002.json", json.dumps(lease(host="elsewhere", renewed=now + 400)).encode())
    monkeypatch.setattr(object_lease.time, "time", lambda: now + 400)
    with pytest.raises(
        RunFolderInUse, match=r"taken over by process \d+ on (.*elsewhere|.*, process \d+ on elsewhere)"
    ):
        small(store, "b")
    assert not [key for key in keys(files) if key.startswith(("trace.zarr/b", "commits/00000001"))]
    store._free()


def test_a_store_that_overwrites_whatever_it_is_asked_is_only_read(
    files: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: Callable[..., None] = files.pipe_file
    monkeypatch.setattr(files, "pipe_file", lambda path, value, mode="overwrite": put(path, value))
    with pytest.raises(UsageError, match="If-None-Match"), hold(URL):
        pass
    assert keys(files) == []


def test_what_is_damaged_is_named_and_taken_out(files: Watched) -> None:
    folder = written("a", "b")
    assert check_run(folder) == []
    files.rm("/bucket/run/trace.zarr/a/entropy/c/0/0/0")
    changed = bytearray(files.store["/bucket/run/trace.zarr/b/unit.json"].getvalue())
    changed[5] ^= 1
    files.pipe_file("/bucket/run/trace.zarr/b/unit.json", bytes(changed))
    said = {(each.unit, each.path): each.problem for each in check_run(folder)}
    assert said[("a", "entropy/c/0/0/0")] == "is missing"
    assert "hash differs" in said[("b", "unit.json")]
    run = probe.open(URL)
    assert isinstance(run, probe.Run)
    with pytest.raises(StoreCorrupt, match="array entropy, chunk 0/0/0 is missing"):
        run.trace("a")["entropy"].load()
    with pytest.raises(StoreCorrupt, match="hash differs"):
        run.trace("b")
    assert forget(folder, check_run(folder)) == ["a", "b"]
    assert not [key for key in keys(files) if key.startswith(("trace.zarr/a", "trace.zarr/b"))]


def test_no_more_is_read_than_an_object_may_have(files: Watched) -> None:
    folder = written("a")
    files.pipe_file("/bucket/run/trace.zarr/a/entropy/c/0/0/0", b"x" * 10**7)
    files.bytes_read = 0
    with pytest.raises(StoreCorrupt, match="more than the"):
        probe.open(str(folder)).trace("a")["entropy"].load()  # type: ignore[union-attr]
    assert files.bytes_read < 10**5


def test_what_was_never_committed_is_removed_and_nothing_else(files: Watched) -> None:
    with RunStore(URL) as store:
        store.begin_unit("half", sample=make_sample()).write({"loss": Array(("token",), np.arange(3.0))})
        store._free()
    files.pipe_file("/bucket/run/trace.zarr/whole/mine.txt", b"not of a unit")
    files.pipe_file("/bucket/run-2/run.json", b"another's")
    assert "trace.zarr/half/.probe-unit" in keys(files)
    with RunStore(URL) as store:
        small(store, "a")
    assert not [key for key in keys(files) if key.startswith("trace.zarr/half")]
    clear(URL)
    assert keys(files) == ["/bucket/run-2/run.json", "trace.zarr/whole/mine.txt"]


def test_one_heads_series_is_read_by_the_chunks_that_hold_it(files: Watched) -> None:
    layers, heads, length = 4, 4, 2**16
    values = np.random.default_rng(0).random((layers, heads, length), np.float32)
    with RunStore(URL) as store:
        writer = store.begin_unit("a", sample=make_sample())
        for layer in range(layers):
            for start in range(0, length, 2**14):
                part = Array(("head", "query"), values[layer, :, start : start + 2**14])
                writer.append_layer(layer, {"entropy": part}, "query")
        writer.commit(OUTCOME)
    write_record(location(URL), {"format": 1, "status": "stopped", "identity": {}})
    trace = probe.open(URL).trace("a")  # type: ignore[union-attr]
    files.reads.clear()
    assert np.array_equal(trace["entropy"][2, 1, 100:200].values, values[2, 1, 100:200])
    chunks = [path.removeprefix("memory://bucket/run/trace.zarr/a/") for path in files.reads if "/c/" in path]
    assert sorted(chunks) == ["entropy/c/2/0/0", "layer/c/0"]


def test_a_trace_is_saved_to_object_storage_and_opened_from_it(files: Watched) -> None:
    memory = MemoryStore()
    writer = memory.begin_unit("unit", sample=make_sample())
    expected = write_unit(writer)
    writer.commit(OUTCOME)
    assert str(memory.trace("unit").save("memory://bucket/saved")) == "memory://bucket/saved"
    saved = probe.open("memory://bucket/saved")
    assert isinstance(saved, probe.Trace)
    for name, values in expected.items():
        assert np.array_equal(saved[name].values, values, equal_nan=True)
    assert saved.verify() == []
    with pytest.raises(UsageError, match="lies at memory://bucket/saved already"):
        saved.save("memory://bucket/saved", overwrite=True)

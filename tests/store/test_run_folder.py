"""A folder is taken for a run only where its run.json is the record of one; what others put there stays."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from probe.errors import RunFolderInUse, StoreCorrupt, UsageError
from probe.storage.hold import hold
from probe.storage.run_folder import Run, read_record


def test_a_record_comes_back_and_a_folder_without_one_holds_none(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "absent") is None
    record = {"format": 1, "identity": {"model": "m"}, "status": "running"}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert read_record(tmp_path) == record


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b'"run"', b"null", b'{"format": 2, "identity": {}}']
)
def test_a_record_that_is_none_is_named_with_what_to_do(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "run.json").write_bytes(data)
    with pytest.raises(StoreCorrupt, match=r"run\.json"):
        read_record(tmp_path)
    assert (tmp_path / "run.json").read_bytes() == data


@pytest.mark.parametrize("value", [{}, {"format": 1}, {"identity": {}}, {"format": "1", "identity": {}}, {"name": "x"}])
def test_a_record_of_something_else_is_no_run(tmp_path: Path, value: dict[str, object]) -> None:
    (tmp_path / "run.json").write_text(json.dumps(value))
    with pytest.raises(RunFolderInUse, match="holds no run"):
        read_record(tmp_path)


@pytest.mark.parametrize("data", [b"mine", b"{}", b"[]", b'{"host": 1}', b"\xff", b"x" * 5000])
def test_a_lock_that_is_not_ours_is_named_and_stays(tmp_path: Path, data: bytes) -> None:
    (tmp_path / ".lock").write_bytes(data)
    with pytest.raises(RunFolderInUse, match=r"\.lock was not written by a run"), hold(tmp_path):
        pass
    assert (tmp_path / ".lock").read_bytes() == data


def test_a_lock_that_is_no_file_is_named(tmp_path: Path) -> None:
    makers: dict[str, Callable[[Path], None]] = {
        "link": lambda path: path.symlink_to("x"),
        "folder": lambda path: path.mkdir(),
        "pipe": lambda path: os.mkfifo(path),
    }
    for name, make in makers.items():
        folder = tmp_path / name
        folder.mkdir()
        make(folder / ".lock")
        with pytest.raises(RunFolderInUse, match=r"\.lock was not written by a run"), hold(folder):
            pass
        assert not (folder / "x").exists()


@pytest.mark.parametrize("before", [b"", b"\0" * 40, b'{"host": "h", "process": 1}'])
def test_a_lock_of_ours_is_taken_again(tmp_path: Path, before: bytes) -> None:
    (tmp_path / ".lock").write_bytes(before)
    with hold(tmp_path):
        assert json.loads((tmp_path / ".lock").read_bytes())["process"] == os.getpid()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file", "not a folder"),
        ("file/run", "Not a directory"),
        ("n" * 300, "File name too long"),
        ("\0", "null"),
        ("/proc/run", "No such file|not permitted|denied"),
    ],
)
def test_a_folder_that_cannot_be_is_named_with_the_reason(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=said) as caught, hold(tmp_path / name):
        pass
    assert str(tmp_path / name) in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["file", "file/run", "n" * 300, "\0"])
def test_a_record_where_no_folder_can_be_is_a_matter_of_usage(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot hold a run"):
        read_record(tmp_path / name)


def test_a_full_disk_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space left"), hold(tmp_path / "run"):
        pass


@pytest.mark.parametrize("findings", ["[{}]", "{}1", "3", "[3]", '[{"format": 1}]'])
def test_findings_that_are_none_are_named_in_one_sentence(tmp_path: Path, findings: str) -> None:
    (tmp_path / "run.json").write_text('{"format": 1}')
    (tmp_path / "findings.json").write_text(findings)
    with pytest.raises(StoreCorrupt, match=r"findings\.json") as caught:
        Run(tmp_path).findings()
    assert "http" not in str(caught.value)
    assert "\n" not in str(caught.value)

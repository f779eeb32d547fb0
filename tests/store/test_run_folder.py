"""A folder is taken for a run only where its run.json is the record of one; what others put there stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probe.errors import RunFolderInUse, StoreCorrupt
from probe.storage.run_folder import read_record


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

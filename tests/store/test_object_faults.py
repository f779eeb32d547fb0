"""The connection to object storage is lost at any put of a run: it ends with one error, and goes on to the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import probe
from probe.errors import ProbeError, StoreUnreachable
from probe.storage import object_path
from tests.store.object_server import Watched
from tests.store.test_object_store import BOOK

URL = "memory://bucket/run"


@pytest.fixture(scope="module")
def model() -> Any:
    return probe.load("needle")


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("book") / "small.yaml"
    path.write_text(BOOK, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(model: Any, book: Path) -> Path:
    """Return a run in a folder, which nothing disturbed."""
    probe.run(book, model=model, out=book.parent / "run", check=False)
    return book.parent / "run"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Watched:
    made = Watched()
    monkeypatch.setattr(object_path, "file_system", lambda protocol: made)
    return made


def play(book: Path, model: Any) -> probe.Run:
    return probe.run(book, model=model, out=URL, check=False)


def same(files: Watched, whole: Path) -> None:
    """Hold what lies in the store, byte by byte, against the run in the folder."""
    arrays = {p.relative_to(whole).as_posix(): p.read_bytes() for p in whole.rglob("*") if "/c/" in p.as_posix()
              and p.is_file()}  # fmt: skip
    stored = {key.removeprefix("/bucket/run/"): file.getvalue() for key, file in files.store.items()}
    assert {name: data for name, data in stored.items() if "/c/" in name} == arrays
    assert json.loads(stored["findings.json"]) == json.loads((whole / "findings.json").read_bytes())
    assert {name.split("/")[0] for name in stored} == {p.name for p in whole.iterdir() if p.name != ".lock"}
    run = probe.open(URL)
    assert isinstance(run, probe.Run)
    assert run.verify() == []
    assert run.record["status"] == "complete"


def loses_and_goes_on(files: Watched, book: Path, model: Any, whole: Path, at: int, *, arrives: bool) -> None:
    files.store.clear()
    files.count, files.fails_at, files.arrives = 0, at, arrives
    try:
        with pytest.raises(StoreUnreachable, match="connection is lost"):
            play(book, model)
    finally:
        files.fails_at, files.down = -1, False
    committed = []
    try:
        found = probe.open(URL)
        assert isinstance(found, probe.Run)
        committed = list(found.units)
        for trace in found.traces():
            assert trace.verify() == []
    except ProbeError:
        assert not committed
    play(book, model)
    same(files, whole)


@pytest.mark.parametrize(("share", "arrives"), [(0.5, False), (0.97, True)])
def test_a_connection_that_is_lost_costs_a_unit_at_most(
    files: Watched, book: Path, model: Any, whole: Path, share: float, arrives: bool
) -> None:
    play(book, model)
    same(files, whole)
    loses_and_goes_on(files, book, model, whole, max(1, round(share * files.count)), arrives=arrives)


@pytest.mark.nightly
@pytest.mark.parametrize("arrives", [False, True])
def test_a_connection_may_be_lost_at_any_put(
    files: Watched, book: Path, model: Any, whole: Path, arrives: bool
) -> None:
    play(book, model)
    for at in range(1, files.count + 1):
        loses_and_goes_on(files, book, model, whole, at, arrives=arrives)

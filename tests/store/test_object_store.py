"""A run in object storage: the arrays and findings of one in a folder, held as that is, by one writer at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probe
from probe.command.cli import app
from probe.errors import UsageError
from probe.storage.object_path import ObjectPath, location
from tests.store.object_server import s3_server

pytestmark = [
    # Of moto and botocore, about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto"),
]

URL = "s3://bucket/runs/small"
BOOK = """
format: 1
name: small
question: Is it the same wherever it is written?
model: needle
workload: {needle: {lengths: [64], depths: [0.5], samples: 2}}
stages:
  - name: read
    conditions:
      baseline: {role: baseline, capture: true}
    capture: [entropy]
    analyses:
      - retrieval_heads: {half: find}
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with s3_server() as files:
        yield files


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    book = tmp_path_factory.mktemp("here") / "small.yaml"
    book.write_text(BOOK, encoding="utf-8")
    assert call("run", str(book), "--quiet", "--no-eager-check", "--out", str(book.parent / "run")).exit_code == 0
    return book.parent / "run"


@pytest.fixture(scope="module")
def there(s3: Any, here: Path) -> str:
    done = call("run", str(here.parent / "small.yaml"), "--quiet", "--no-eager-check", "--out", URL)
    assert done.exit_code == 0, done.output
    return URL


def test_a_run_in_s3_is_the_files_of_one_in_a_folder(s3: Any, here: Path, there: str) -> None:
    found = {
        key.removeprefix("bucket/runs/small/"): about["size"] for key, about in s3.find(there, detail=True).items()
    }
    expected = {p.relative_to(here).as_posix(): p for p in here.rglob("*") if p.is_file() and p.name != ".lock"}
    assert set(found) == set(expected)
    arrays = [name for name in expected if "/c/" in name]
    assert arrays
    for name in arrays:
        assert s3.cat_file(f"{there}/{name}") == expected[name].read_bytes()
    assert json.loads(s3.cat_file(f"{there}/findings.json")) == json.loads((here / "findings.json").read_bytes())


def test_it_opens_shows_and_is_verified_by_its_url(here: Path, there: str) -> None:
    run, local = probe.open(there), probe.open(here)
    assert isinstance(run, probe.Run)
    assert isinstance(local, probe.Run)
    assert list(run.units) == list(local.units)
    for trace, expected in zip(run.traces(), local.traces(), strict=True):
        assert trace.dataset.load().identical(expected.dataset.load())
    assert run.verify() == []
    assert there in call("show", there).output
    assert "every byte is what was written" in call("verify", there).output
    assert f"--out {there}" in str(run.record["command"])
    assert "--no-eager-check" in str(run.record["command"])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://me:hush@bucket/run", "password"),
        ("s3://bucket/../run", "cannot name a run"),
        ("s3://bucket//run", "cannot name a run"),
        ("s3:///run", "cannot name a run"),
        ("s3://bucket/run?versionId=1", "cannot name a run"),
        ("s3://bucket/a*", "cannot name a run"),
        ("https://host/run", "s3://"),
        ("simplecache::s3://bucket/run", "s3://"),
        ("file://elsewhere/run", "file:///folder"),
        ("s3:/bucket/run", "both of its slashes"),
    ],
)
def test_what_is_no_place_for_a_run_is_refused(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        location(url)
    assert "hush" not in str(refused.value)
    assert call("run", "first-look", "--out", url).exit_code == 2


def test_paths_of_this_machine_stay_paths(tmp_path: Path) -> None:
    assert location("runs/a") == Path("runs/a")
    assert location("C:/runs") == Path("C:/runs")
    assert location(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert location(Path("a")) == Path("a")
    assert str(location("memory://bucket/run") / "trace.zarr/unit") == "memory://bucket/run/trace.zarr/unit"
    assert location("memory://bucket/run").parent.parent == ObjectPath("memory", ("bucket",))

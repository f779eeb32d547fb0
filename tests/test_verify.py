"""A run folder is held against what was written, byte by byte, and made whole again."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probe
from probe.command.cli import app
from probe.command.replayed import replayed
from probe.storage.checking import check_run
from probe.storage.seal import COPY, sealed
from tests.reliability.figures import Measured

SMALL: dict[str, Any] = {"lengths": (64,), "depths": (0.0, 1.0), "limit": 2}


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("played") / "run"
    command = ["run", "retrieval-heads", "--lengths", "64", "--depths", "0,1", "--limit", "2", "--out", str(folder)]
    assert call(*command, "--quiet").exit_code in (0, 4)
    return folder


@pytest.fixture
def folder(played: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(played, tmp_path / "run"))


def files(folder: Path) -> list[Path]:
    """Return every file that holds something of the run."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock" and p.stat().st_size)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def named(folder: Path) -> set[str]:
    return {f"trace.zarr/{each.unit}/{each.path}" if each.unit else each.path for each in check_run(folder)}


def content(folder: Path) -> dict[str, Any]:
    """Return what a run found and every byte of its arrays; what it cost and when is another each time."""
    arrays = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("c/*") if p.is_file()}
    arrays |= {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("c/**/*") if p.is_file()}
    return {"findings": json.loads((folder / "findings.json").read_text(encoding="utf-8")), **arrays}


def test_a_run_as_it_was_written_is_whole(played: Path) -> None:
    assert check_run(played) == []
    done = call("verify", str(played))
    assert (done.exit_code, "every byte is what was written" in done.output) == (0, True)


@pytest.mark.parametrize(
    "name", ["run.json", COPY, "findings.json", "report.html", "commits.jsonl", "trace.zarr/zarr.json"]
)
def test_every_flipped_bit_of_a_runs_own_files_is_found(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    draws = random.Random(0)
    for bit in [0, 8 * len(whole) - 1, *(draws.randrange(8 * len(whole)) for _ in range(20))]:
        flip(path, bit)
        assert name in named(folder), f"bit {bit}"
        path.write_bytes(whole)
    assert check_run(folder) == []


def test_a_number_spelt_in_another_way_is_not_what_was_written(folder: Path) -> None:
    path = folder / "run.json"
    record = sealed({**json.loads(path.read_text(encoding="utf-8")), "status": "complete", "tiny": 1e-30})
    for name in ("run.json", COPY):
        (folder / name).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert check_run(folder) == []
    path.write_text(path.read_text(encoding="utf-8").replace("1e-30", "1E-30"), encoding="utf-8")
    assert "run.json" in named(folder)


def test_a_thousand_flipped_bits_are_found_and_repaired(folder: Path, played: Path, measured: Measured) -> None:
    draws = random.Random(1)
    # One of the two records stays: with both gone nobody knows what the run was.
    at = [path for path in files(folder) if path.name != COPY]
    flipped: set[Path] = set()
    for _ in range(1000):
        path = draws.choice(at)
        flip(path, draws.randrange(8 * path.stat().st_size))
        flipped.add(path)
    # A bit that was flipped twice is as it was.
    changed = {p for p in flipped if p.read_bytes() != (played / p.relative_to(folder)).read_bytes()}
    found = named(folder)
    for path in changed:
        name = path.relative_to(folder).as_posix()
        manifest = "/".join([*name.split("/")[:2], "manifest.json"])
        assert {name, manifest, "commits.jsonl"} & found, name
    assert call("verify", str(folder)).exit_code == 5
    done = call("verify", str(folder), "--repair")
    assert done.exit_code == 0, done.output
    assert check_run(folder) == []
    assert content(folder) == content(played)
    measured("1,000 bits", f"1,000 bits in {len(flipped)} of {len(at)} files: all found, all repaired, bytes equal")


def test_a_damaged_unit_alone_is_read_again(folder: Path, played: Path) -> None:
    units = sorted((folder / "trace.zarr").iterdir())
    unit = next(path for path in units if path.is_dir())
    chunk = next(path for path in unit.rglob("c/**/*") if path.is_file())
    chunk.unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}
    done = call("verify", str(folder), "--repair")
    assert done.exit_code == 0, done.output
    assert "1 units are taken out" in done.output
    again = [path for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert again == [unit / "manifest.json"]
    assert content(folder) == content(played)


def test_a_run_made_in_a_notebook_is_repaired_too(tmp_path: Path) -> None:
    run = probe.run("retrieval-heads", out=tmp_path / "run", **SMALL)
    before = content(run.path)
    (run.path / "findings.json").write_text("[]", encoding="utf-8")
    assert call("verify", str(run.path), "--repair").exit_code == 0
    assert content(run.path) == before


def test_what_cannot_be_repaired_says_so(folder: Path, tmp_path: Path) -> None:
    for name in ("run.json", COPY):
        flip(folder / name, 800)
    done = call("verify", str(folder), "--repair")
    assert done.exit_code == 5
    assert "neither run.json nor run.copy.json" in done.output
    assert call("verify", str(tmp_path / "nowhere")).exit_code == 3


def test_a_run_of_an_earlier_version_is_checked_as_far_as_it_goes(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    del record["seal"], record["files"]
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / COPY).unlink()
    assert check_run(folder) == []


def test_a_command_of_before_the_scan_had_its_name_is_played_as_it_was_meant() -> None:
    words = replayed("probe run first-look --engine blocked --out o", Path("here"))
    assert words == ["run", "--scan=blocked", "--out=here", "--", "first-look"]

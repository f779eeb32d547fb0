"""A specimen can be trained anew by a command, which says whether it is like the one that ships."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

import probe
from probe import specimens
from probe.command.cli import app

TRAIN = """
import argparse, json
from pathlib import Path
import probe
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path)
parser.add_argument("--seed", type=int)
given = parser.parse_args()
given.out.mkdir()
(given.out / "weights.json").write_text(json.dumps(given.seed))
"""
MEASURE = """
import argparse, json
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--seed", type=int)
parser.add_argument("--json", type=Path)
given = parser.parse_args()
error = json.loads((given.folder / "weights.json").read_text()) / 10
given.json.write_text(json.dumps({"error": error, "beside": 3, "lost": float("nan")}))
"""
SHIPPED = {name: folder for name, folder in specimens.folders().items() if not specimens._lacks(folder)}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A specimen whose error is a tenth of its seed."""
    folder = tmp_path / "house" / "casebooks" / "specimens" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("# tiny\n\nA model of one number. More.\n")
    (folder / "train.py").write_text(TRAIN)
    (folder / "measure.py").write_text(MEASURE)
    (folder / "specimen.json").write_text(json.dumps({"engineered": True, "bounds": {"error": [0.0, 0.15]}}))
    monkeypatch.setattr(probe, "__path__", [*probe.__path__, str(tmp_path / "house")])
    return folder


def command(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["specimens", *words])
    return done.exit_code, done.output


def test_specimens_are_listed(tiny: Path) -> None:
    code, said = command("--json")
    listed = json.loads(said)
    assert code == 0
    assert {"tiny", "needle", "flip-flop"} <= set(listed)
    assert listed["tiny"]["description"] == "A model of one number."
    assert listed["needle"]["engineered"] is True
    assert listed["flip-flop"]["engineered"] is False
    assert "flip-flop glitches; emergent" in command()[1]


@pytest.mark.parametrize(("seed", "code", "mark"), [(1, 0, "✓"), (2, 1, "✗")])
def test_one_trained_anew_is_held_against_its_card(tiny: Path, tmp_path: Path, seed: int, code: int, mark: str) -> None:
    status, said = command("train", "tiny", "--out", str(tmp_path / "new"), "--seed", str(seed))
    assert status == code
    assert f"{mark} error            0.{seed}  0 to 0.15" in said
    assert "beside" in said
    assert "no bounds" in said


def test_a_figure_that_is_missing_or_no_number_is_not_within_its_bounds() -> None:
    rows = specimens.compared({"a": float("nan"), "c": 1}, {"a": [0, 1], "b": [0, 1]})
    assert [(row.figure, row.value, row.within) for row in rows] == [
        ("a", None, False),
        ("b", None, False),
        ("c", 1.0, True),
    ]


def test_what_cannot_be_trained_is_said_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    code, said = command("train", "tinny", "--out", str(new))
    assert code == 2
    assert "there is no specimen 'tinny'; there are flip-flop" in said
    (tiny / "specimen.json").write_text("{}")
    assert "states no bounds" in command("train", "tiny", "--out", str(new))[1]
    (tiny / "measure.py").unlink()
    assert "it has no measure.py" in command("train", "tiny", "--out", str(new))[1]
    assert not new.exists()
    new.mkdir()
    code, said = command("train", "needle", "--out", str(new))
    assert code == 2
    assert "exists; it stays as it is" in said
    assert not [*new.iterdir()]


def test_a_script_that_fails_is_named(tiny: Path, tmp_path: Path) -> None:
    (tiny / "train.py").write_text("raise SystemExit(3)")
    code, said = command("train", "tiny", "--out", str(tmp_path / "new"))
    assert code == 70
    assert "train.py ended with status 3" in said.replace("\n", "")


@pytest.mark.parametrize("name", ["flip-flop", "needle"])
def test_the_shipped_figures_lie_within_the_bounds_of_their_own_card(name: str) -> None:
    record = json.loads((SHIPPED[name] / "specimen.json").read_text(encoding="utf-8"))
    script = runpy.run_path(str(SHIPPED[name] / "measure.py"))
    assert record["bounds"] == {figure: list(ends) for figure, ends in script["BOUNDS"].items()}
    rows = specimens.compared(script["named"](record["figures"]), record["bounds"])
    assert all(row.within for row in rows), [row for row in rows if not row.within]
    assert all(row.low < row.high or row.low == row.value for row in rows if row.low is not None)


def test_every_specimen_that_ships_can_be_trained_anew() -> None:
    assert set(SHIPPED) == set(specimens.folders())

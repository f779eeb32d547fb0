"""`probe run all` plays every casebook, goes on where one fails, and says what came of each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import probe
from probe import discovery
from probe.casebook import load
from probe.command.cli import app
from probe.command.run_all import unconcerned

BOOK = """\
name: {name}
question: Does it?
model: {model}
workload:
  needle: {{lengths: [64], depths: [0.5], samples: 2}}
stages:
  - name: read
    conditions:
      baseline: {{role: baseline, capture: true}}
    analyses: [{analysis}]
expect:
  - {{analysis: {analysis}, verdict: {verdict}}}
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes casebooks that stand in the place of those that ship."""
    known = discovery.names
    monkeypatch.setattr(probe, "__path__", [*probe.__path__, str(tmp_path / "house")])

    def make(**books: dict[str, str]) -> None:
        for name, changed in books.items():
            folder = tmp_path / "house" / "casebooks" / name
            folder.mkdir(parents=True)
            given = {"name": name, "model": "needle", "analysis": "retrieval_heads", "verdict": "inconclusive"}
            (folder / f"{name}.yaml").write_text(BOOK.format(**(given | changed)))
        monkeypatch.setattr(discovery, "names", lambda room: [*books] if room == "casebooks" else known(room))

    return make


def command(*words: str) -> Any:
    return CliRunner().invoke(app, ["run", "all", "--quiet", *words])


def test_each_is_played_into_its_own_folder_and_one_that_fails_stops_none(
    house: Callable[..., None], tmp_path: Path
) -> None:
    house(first={}, second={"model": str(tmp_path / "nothing")}, third={"verdict": "supported"})
    done = command("--out", str(tmp_path / "runs"), "--limit", "1")
    assert done.exit_code == 4, done.output
    assert "1 of 3 casebooks failed or are partial: second" in done.output
    assert "✓ first: complete, 1 inconclusive" in done.output
    assert "! second: failed" in done.output
    assert "not met: retrieval_heads: supported; found inconclusive" in done.output
    assert [path.name for path in sorted((tmp_path / "runs").iterdir())] == ["first", "third"]
    run = probe.open(tmp_path / "runs" / "third")
    assert isinstance(run, probe.Run)
    assert len(run.units) == 1
    assert run.record["command"] == f"probe run third --out {tmp_path / 'runs' / 'third'} --limit 1"


def test_an_expectation_that_is_not_met_gives_exit_code_1_where_it_is_asked_for(
    house: Callable[..., None], tmp_path: Path
) -> None:
    house(first={}, third={"verdict": "supported"})
    words = ("--out", str(tmp_path / "runs"), "--limit", "1", "--json")
    assert command(*words).exit_code == 0
    checked = CliRunner().invoke(app, ["run", "all", "--quiet", "--check", *words])
    assert checked.exit_code == 1
    assert "expectations are not met in third" in checked.stderr
    came = json.loads(checked.stdout)
    assert [(each["casebook"], each["status"], len(each["unmet"])) for each in came] == [
        ("first", "complete", 0),
        ("third", "complete", 1),
    ]


def test_a_model_of_another_kind_is_said_to_be_none_of_a_casebooks_concern(tmp_path: Path) -> None:
    path = tmp_path / "book.yaml"
    path.write_text(BOOK.format(name="book", model="needle", analysis="retrieval_heads", verdict="supported"))
    attends = SimpleNamespace(name="llama", attention_layers=(0, 1), recurrent_layers=())
    recurs = SimpleNamespace(name="mamba", attention_layers=(), recurrent_layers=(0, 1))
    assert unconcerned(load(path), None) == ""
    assert unconcerned(load(path), attends) == ""
    assert unconcerned(load(path), recurs) == "it asks about attention (retrieval_heads), and no layer of mamba attends"
    if "state_collapse" in discovery.names("analyses"):
        path.write_text(BOOK.format(name="book", model="needle", analysis="state_collapse", verdict="supported"))
        assert unconcerned(load(path), attends) == "it asks about recurrent layers, and llama has none"
        assert unconcerned(load(path), recurs) == ""


@pytest.mark.parametrize("option", ["--lengths=64", "--depths=0.5", "--haystack=x.txt"])
def test_what_only_one_workload_can_have_is_refused(house: Callable[..., None], option: str) -> None:
    house(first={})
    done = command(option)
    assert done.exit_code == 2
    assert f"{option.partition('=')[0]} is one casebook's" in done.output


SMALLER: dict[str, dict[str, Any]] = {
    "finding-and-answering": {"lengths": (128, 512), "depths": (0.0, 0.5)},
    "length-rescue": {"lengths": (256, 512), "depths": (0.0, 1.0)},
    "lost-in-the-middle": {"lengths": (290,), "depths": (0.0, 0.5, 1.0)},
}
"""What is asked of those whose own grid takes longest; all of it is played with the slow tests."""


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        pytest.param(name, SMALLER.get(name, {}), id=name)
        for name in discovery.names("casebooks")
        if name != "first-look"
    ]
    + [pytest.param(name, {}, marks=pytest.mark.slow, id=f"{name}-whole") for name in SMALLER],
)
def test_each_casebook_that_ships_plays_with_few_samples(name: str, grid: dict[str, Any], tmp_path: Path) -> None:
    run = probe.run(name, limit=1, out=tmp_path / "run", **grid)
    assert run.record["status"] == "complete"
    assert run.findings()


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_all_are_played_as_they_expect_within_twenty_minutes(tmp_path: Path) -> None:
    began = time.monotonic()
    done = command("--out", str(tmp_path / "runs"), "--check")
    assert done.exit_code == 0, done.output
    assert time.monotonic() - began < 20 * 60

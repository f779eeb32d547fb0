"""What a shell completes, asked as the shells ask: by the environment, of a process that must be quick."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from probe import discovery
from probe.command import completing
from probe.hooks.sequence.decoding_state import Cache
from probe.kernels.engine import EngineName
from probe.storage.export import SUFFIXES

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "triton", "numpy", "xarray", "zarr", "scipy", "plotly", "dash", "yaml"}
PROGRAM = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from probe.command.cli import app
app(prog_name="probe")
"""


def completed(shell: str, line: str, folder: Path) -> tuple[list[str], set[str]]:
    """The lines that a shell is given for what stands before its cursor, and the modules that it took."""
    words = line.split(" ")
    asked = {"_PROBE_COMPLETE": f"complete_{shell}", "PYTHONPATH": str(ROOT)}
    if shell == "bash":
        asked |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    else:
        asked |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))} | asked
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines(), {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    ("shell", "line", "expected"),
    [
        ("bash", "probe ", "init"),
        ("bash", "probe run first", "first-look"),
        ("bash", "probe bench --statistics entropy,received", "entropy,received_mass"),
        ("zsh", "probe run --mod", '"--model"'),
        ("fish", "probe show ru", "runs/"),
    ],
)
def test_a_shell_is_answered_without_anything_heavy(shell: str, line: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    given, modules = completed(shell, line, tmp_path)
    # zsh is given all as arguments of one call.
    assert any(expected in each for each in given) if shell == "zsh" else expected in {e.split("\t")[0] for e in given}
    assert not HEAVY & modules


def values(found: list[tuple[str, str]]) -> list[str]:
    return [value for value, _ in found]


def test_values_have_names() -> None:
    assert values(completing.casebooks("first")) == ["first-look"]
    assert "published/sink-share-llama-2-7b" in values(completing.casebook_names("published/"))
    assert values(completing.casebooks("al")) == ["all"]
    assert values(completing.specimen_names("pro")) == ["prose"]
    assert "entropy,core" in values(completing.statistics("entropy,co"))
    assert values(completing.statistics("entropy,received")) == ["entropy,received_mass"]
    assert completing.rooms("st") == ["statistics"]
    assert values(completing.backends("")) == ["huggingface", "nnsight", "transformer_lens"]
    assert completing.one_of(("cpu", "cuda"))("cu") == ["cuda"]


def test_runs_and_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a-run").mkdir(parents=True)
    (tmp_path / "runs" / "a-run" / "run.json").touch()
    (tmp_path / "runs" / "notes.txt").touch()
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    assert values(completing.runs("")) == ["model/", "runs/"]
    assert values(completing.runs("runs/")) == ["runs/a-run"]
    assert values(completing.casebooks("mi")) == ["mine.yaml"]
    assert values(completing.models("mo")) == ["model"]
    assert completing.runs("nowhere/") == []


@pytest.mark.parametrize("name", ["$(touch x)", "`x`", "a'b", 'a"b', "a;b", "a\nb", "a\x1b[2Jb", "a|b", "a&b", "a(b"])
def test_a_name_that_a_shell_would_evaluate_is_not_offered(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert completing.runs("") == []


def test_what_is_offered_is_what_there_is() -> None:
    """Fixed values are written down, so that nothing is imported for them; the code that takes them says the same."""
    assert sorted(completing.ENGINES) == discovery.names("engines")
    assert get_args(EngineName) == completing.SCANS
    assert get_args(Cache) == completing.CACHES
    assert {*completing.FORMATS} == {*SUFFIXES, "duo_attention"}

"""A run is what it was made of: the same again gives the same bytes, and anything else is refused by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import probe
from probe import run_identity
from probe.command.cli import app
from probe.errors import RunFolderInUse
from tests.faults import BOOK
from tests.reliability.figures import Measured
from tests.reliability.same_run import content

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("book") / "small.yaml"
    path.write_text(BOOK, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def played(book: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return probe.run(book, model=probe.load("needle"), out=tmp_path_factory.mktemp("played") / "run").path


def test_the_same_casebook_twice_gives_the_same_bytes(
    book: Path, played: Path, tmp_path: Path, measured: Measured
) -> None:
    again = probe.run(book, model=probe.load("needle"), out=tmp_path / "again").path
    first, second = content(played), content(again)
    assert first == second
    measured("twice", f"{len(first)} files of a run equal byte for byte, findings, report and record among them")


def another_seed(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"seed": 1}


def another_length(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"lengths": (64, 128)}


def other_weights(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    with torch.no_grad():
        # The smallest step that the number has.
        weight = model.hf.model.layers[2].mlp.down_proj.weight
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    return {}


def another_dtype(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    model.hf.to(torch.float64)
    return {}


def another_fact(name: str) -> Callable[..., dict[str, Any]]:
    def change(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        facts = model.provenance()
        monkeypatch.setattr(type(model), "provenance", lambda _: facts | {name: "another"})
        return {}

    return change


def another_library(name: str) -> Callable[..., dict[str, Any]]:
    def change(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        there = run_identity.version
        monkeypatch.setattr(run_identity, "version", lambda asked: "99.0" if asked == name else there(asked))
        return {}

    return change


def another_version_of_probe(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(probe, "__version__", "99.0")
    return {}


def another_way_to_read(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"deterministic": True}


CHANGES: list[tuple[str, Callable[..., dict[str, Any]]]] = [
    ("casebook", another_seed),
    ("casebook", another_length),
    ("weights_sha256", other_weights),
    ("dtype, weights_sha256", another_dtype),
    ("revision", another_fact("revision")),
    ("tokenizer_sha256", another_fact("tokenizer_sha256")),
    ("attention_implementation", another_fact("attention_implementation")),
    ("model", another_fact("model")),
    ("torch", another_library("torch")),
    ("transformers", another_library("transformers")),
    ("longcontext-probe", another_version_of_probe),
    ("deterministic", another_way_to_read),
]


def test_what_changed_underneath_is_named_and_never_mixed(
    book: Path, played: Path, monkeypatch: pytest.MonkeyPatch, measured: Measured
) -> None:
    before = content(played)
    for key, change in CHANGES:
        with monkeypatch.context() as planted:
            model = probe.load("needle")
            options = change(model, planted)
            said = f"holds another run, which differs in {key}; give another folder with --out, or --force"
            with pytest.raises(RunFolderInUse, match=re.escape(said)):
                probe.run(book, model=model, out=played, check=False, **options)
        assert content(played) == before
    keys = sorted({each for key, _ in CHANGES for each in key.split(", ")})
    measured(
        "changed underneath", f"{len(CHANGES)} changes ({', '.join(keys)}): each refused by that name, no byte changed"
    )


HOLDS = """
import socket, sys
from probe.storage.hold import hold
with hold(sys.argv[1]):
    print(socket.gethostname(), flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_dead_holder_is_none(book: Path, tmp_path: Path, measured: Measured) -> None:
    out = tmp_path / "run"
    command = ["run", str(book), "--out", str(out), "--quiet"]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        host = holder.stdout.readline().strip()
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 6, done.output
        assert f"process {holder.pid} on {host}" in done.output
        assert [path.name for path in out.iterdir()] == [".lock"]
        holder.kill()
        holder.wait()
    assert CliRunner().invoke(app, command).exit_code == 0
    measured(
        "second process",
        "refused with host and process id, exit 6, no byte written; after kill -9 of the holder taken over",
    )

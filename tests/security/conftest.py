"""A small run that was played by the command line, to be turned into a hostile one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from probe.storage.durable import write_json
from probe.storage.seal import COPY, sealed


def call(*words: str) -> Any:
    """Give the command line words, and return how it ended."""
    from probe.command.cli import app

    return CliRunner().invoke(app, list(words))


def claim(folder: Path, **changed: Any) -> None:
    """Put something else into a run's record, sealed as a writer would seal it; what is None is taken out."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8")) | changed
    record = sealed({key: value for key, value in record.items() if value is not None})
    for name in ("run.json", COPY):
        write_json(folder / name, record)


@pytest.fixture(scope="session")
def played_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four prompts of the specimen; nobody changes this one."""
    folder = tmp_path_factory.mktemp("played") / "run"
    command = ["run", "retrieval-heads", "--lengths", "64", "--depths", "0,1", "--limit", "2", "--out", str(folder)]
    done = call(*command, "--no-eager-check", "--quiet")
    assert done.exit_code in (0, 4), done.output
    return folder


@pytest.fixture
def played(played_once: Path, tmp_path: Path) -> Path:
    """A copy of it, to do with as one likes."""
    return Path(shutil.copytree(played_once, tmp_path / "run"))


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of its own with every kind of array; nobody changes this one."""
    import probe

    model = probe.load("needle")
    sample = next(iter(probe.needle(lengths=(64,), depths=(0.5,), samples=1).build(model.tokenizer)))
    statistics = ["entropy", "span_mass", "attention_map", "loss"]
    trace = probe.trace(model, sample, statistics=statistics, queries_and_keys=[0])
    return trace.save(tmp_path_factory.mktemp("saved") / "trace")

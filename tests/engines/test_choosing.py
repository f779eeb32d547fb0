"""How an engine is named, and what it refuses before anything is written; no Ray is started."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

import probe
from probe.casebook import Casebook
from probe.command.cli import _command, _engine_flags, app
from probe.engines.engine import chosen_engine
from probe.engines.local import local
from probe.engines.ray import ray
from probe.engines.ray_cluster import _environment
from probe.errors import NotAvailable, UsageError


def test_an_engine_is_its_name_its_fields_or_itself() -> None:
    assert chosen_engine("local") == local()
    assert chosen_engine({"ray": {"workers": 3}}) == chosen_engine(ray(workers=3)) == ray(workers=3)
    assert ray(workers=3, gpus_per_worker=0.5).to_json() == {
        "ray": {"address": None, "workers": 3, "gpus_per_worker": 0.5, "cpus_per_worker": 1}
    }


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("fast", "no engine 'fast'; there are local, ray"),
        ("triton", "write scan='triton', or --scan triton"),
        ({"ray": {"gpus": 1}}, "engine ray has no field gpus; it has address, workers, gpus_per_worker"),
        ({"local": {}, "ray": {}}, "an engine is one name"),
        ({"ray": {"workers": 0}}, "workers is a whole number from 1 on, not 0"),
        ({"ray": {"cpus_per_worker": 1.5}}, "cpus_per_worker is a whole number"),
        ({"ray": {"gpus_per_worker": 1.5}}, "a part of one GPU or a whole number of them, not 1.5"),
        ({"ray": {"address": "ray://head:10001"}}, "a Ray Client"),
    ],
)
def test_what_is_no_engine_is_refused_by_name(choice: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        chosen_engine(choice)


def test_a_model_that_no_worker_could_open_is_refused(book: Casebook, tmp_path: Path) -> None:
    hf = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=64))
    given = probe.load(hf, tokenizer=probe.load("needle").tokenizer)
    for model, engine, said in (
        (given, "ray", "was given as an object: give the engine ray a specimen's name, a hub id or a folder"),
        ("needle", {"ray": {"gpus_per_worker": 0.5}}, "lies on cpu: for workers with GPUs write --device cuda"),
    ):
        with pytest.raises(UsageError, match=said):
            probe.run(book, model=model, out=tmp_path / "run", engine=engine, check=False)
    model = probe.load("needle")
    model.is_remote = True  # type: ignore[misc]
    with pytest.raises(UsageError, match="runs on NDIF"):
        ray().check(model)
    assert not (tmp_path / "run").exists()


def test_without_ray_the_command_that_installs_it_is_said(
    book: Casebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    with pytest.raises(NotAvailable, match=r"pip install 'longcontext-probe\[ray\]'"):
        probe.run(book, out=tmp_path / "run", engine="ray")
    assert not (tmp_path / "run").exists()


def test_the_command_line_gives_the_engine_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run(casebook: str, **options: Any) -> None:
        asked.update(options)
        raise UsageError("asked")

    monkeypatch.setattr("probe.player.run", run)
    flags = "--engine ray --engine-address h:6379 --workers 4 --gpus-per-worker 0.5 --cpus-per-worker 2"
    CliRunner().invoke(app, ["run", "first-look", *flags.split()])
    assert asked["engine"] == {"ray": {"address": "h:6379", "workers": 4, "gpus_per_worker": 0.5, "cpus_per_worker": 2}}
    assert asked["command"] == f"probe run first-look {flags}"
    assert _command("x", _engine_flags(asked["engine"])) == f"probe run x {flags}"
    assert _command("x", _engine_flags("local")) == "probe run x --engine local"
    assert _command("x", _engine_flags(None)) == "probe run x"
    alone = CliRunner().invoke(app, ["run", "first-look", "--workers", "4"])
    assert alone.exit_code == 2
    assert "--workers: these are options of --engine ray" in " ".join(alone.output.split())


def test_a_cluster_that_is_not_there_is_named(book: Casebook, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        # Nobody listens there.
        with pytest.raises(NotAvailable, match=f"a Ray cluster at {address} cannot be joined: .*refused"):
            probe.run(book, out=tmp_path / "run", engine={"ray": {"address": address}}, check=False)


def test_what_ray_sets_for_one_cluster_does_not_lock_out_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set and deleted, so that it is as it was when the test has ended.
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    for _ in range(3):
        with _environment(None):
            assert os.environ["RAY_AUTH_TOKEN"]
            # As Ray does where it finds a token.
            os.environ["RAY_AUTH_MODE"] = "token"
        assert "RAY_AUTH_MODE" not in os.environ
        assert "RAY_AUTH_TOKEN" not in os.environ

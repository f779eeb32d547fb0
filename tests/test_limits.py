"""A run stops where it has taken what it may take, or where it is told to, and goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probe
from probe.command.cli import app
from probe.errors import StoppedByLimit, UsageError
from probe.limits import Limits, folder_bytes, size_of

ROOT = Path(__file__).resolve().parent.parent
SMALL: dict[str, Any] = {"lengths": (64,), "depths": (0.0, 1.0), "limit": 2}
COMMAND = ["run", "retrieval-heads", "--lengths", "64", "--depths", "0,1", "--limit", "2", "--quiet"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> probe.Run:
    return probe.run("retrieval-heads", out=tmp_path_factory.mktemp("whole") / "run", **SMALL)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GB", 20_000_000_000),
        ("1.5 MB", 1_500_000),
        ("512MiB", 2**29),
        ("1000", 1000),
        ("2kib", 2048),
        ("1TB", 10**12),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e3", "10 parsecs", "0", "0.1B", "1_000", "١GB"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        size_of(text)


def test_a_run_stops_at_its_disk_and_goes_on_to_the_same_findings(whole: probe.Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    half = folder_bytes(whole.path / "trace.zarr") // 2
    with pytest.raises(StoppedByLimit, match=r"of the .* GB that the run may take"):
        probe.run("retrieval-heads", out=out, limits=Limits(max_bytes=half), **SMALL)
    stopped = probe.open(out)
    assert isinstance(stopped, probe.Run)
    assert stopped.record["status"] == "stopped"
    assert 0 < len(stopped) < len(whole)
    assert stopped.verify() == []
    # One unit is ended once it is begun, and no more.
    largest = max(folder_bytes(unit) for unit in (whole.path / "trace.zarr").iterdir())
    assert folder_bytes(out / "trace.zarr") <= half + 2 * largest
    again = probe.run("retrieval-heads", out=out, **SMALL)
    assert [finding.to_json() for finding in again.findings()] == [finding.to_json() for finding in whole.findings()]


def test_the_command_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = CliRunner().invoke(app, [*COMMAND, "--out", str(out), "--max-hours", "0"])
    assert done.exit_code == 7
    assert "0 hours that the run may take are over" in done.output
    assert "To go on:" in done.output
    assert "--max-hours" not in done.output.split("To go on:")[1]
    done = CliRunner().invoke(app, [*COMMAND, "--out", str(out), "--budget", "a lot"])
    assert (done.exit_code, "'a lot' is no size" in done.output) == (2, True)


# A lock that is taken twice: a call without end, of a library, into which no handler of Python's comes.
DEAF = """
import ctypes, sys, types
module = types.ModuleType("probe.player")
def run(casebook, *, progress, **options):
    progress.start(5)
    progress.advance("a")
    libc, mutex = ctypes.CDLL(None), (ctypes.c_char * 128)()
    libc.pthread_mutex_lock(mutex)
    print("deaf", flush=True)
    libc.pthread_mutex_lock(mutex)
module.run = run
sys.modules["probe.player"] = module
sys.argv = ["probe", "run", "first-look"]
from probe.command.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_run_that_is_deaf_ends_within_five_seconds(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DEAF]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "deaf\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "1 of 5 units are done and stay. To go on:" in said
    assert "Traceback" not in said

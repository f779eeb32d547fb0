"""A real run, in a process of its own, is stopped by each signal at several units, and goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import BOOK
from tests.reliability.figures import Measured
from tests.reliability.same_run import content

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "probe", "run", "small.yaml", "--out", "run", "--quiet"]


def start(folder: Path) -> subprocess.Popen[str]:
    """Start the run in a session of its own, so that what it leaves behind is found."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        COMMAND,
        cwd=folder,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def committed(folder: Path) -> int:
    record = folder / "run" / "commits.jsonl"
    return record.read_bytes().count(b"\n") if record.exists() else 0


@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_nothing_behind_and_goes_on(tmp_path: Path, measured: Measured) -> None:
    (tmp_path / "small.yaml").write_text(BOOK, encoding="utf-8")
    with start(tmp_path) as process:
        assert process.wait(300) == 0
    expected = content(tmp_path / "run")
    longest, stops = 0.0, 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)):
        for units in (0, 1, 4):
            shutil.rmtree(tmp_path / "run")
            with start(tmp_path) as process:
                while not ((tmp_path / "run" / "run.json").exists() and committed(tmp_path) >= units):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        raise AssertionError(f"it ended with {process.wait(0.01)}")
                process.send_signal(number)
                began = time.monotonic()
                _, said = process.communicate(timeout=60)
                longest = max(longest, time.monotonic() - began)
            assert process.returncode == code, said
            # One line, and the command.
            assert said.startswith("probe: stopped; ")
            assert said.endswith(". To go on:\n  probe run small.yaml --out run\n")
            assert said.count("\n") == 2
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)
            with start(tmp_path) as process:
                assert process.wait(300) == 0
            assert content(tmp_path / "run") == expected
            stops += 1
    measured(
        "signals",
        f"{stops} stops of a real run (three signals, at 0, 1 and 4 units): no traceback, no process left, exit 130, "
        f"143, 140; ended after {longest:.1f} s at most; each went on to equal bytes",
    )

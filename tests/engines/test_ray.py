"""Ray itself, on this machine: two workers, one of them killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
from pathlib import Path

import psutil
import pytest

import probe
from probe.casebook import Casebook
from probe.storage.checking import check_run
from tests.engines.conftest import Told, same

# It is the run that imports it: Ray reads its settings then.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
OURS = ("PYTHONPATH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED")


def workers() -> list[psutil.Process]:
    """Return the workers of this process' clusters, the one that began first in front."""
    found = [each for each in psutil.Process().children(recursive=True) if each.name().startswith("ray::Worker")]
    return sorted(found, key=lambda each: each.create_time())


def test_two_workers_one_of_them_killed_give_what_one_process_gives(
    book: Casebook, alone: Path, tmp_path: Path, told: Told, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Path] = []

    def kill(number: int) -> None:
        seen.extend(Path(tempfile.gettempdir()).glob(f"probe-ray-{os.getpid()}-*"))
        if number == 2:
            os.kill(workers()[0].pid, signal.SIGKILL)

    told.at = kill
    before = signal.getsignal(signal.SIGTERM), [os.environ.get(name) for name in OURS]
    run = probe.run(book, out=tmp_path / "run", engine={"ray": {"workers": 2}}, progress=told)
    assert same(tmp_path / "run") == same(alone)
    assert check_run(tmp_path / "run") == []
    assert run.record["status"] == "complete"
    assert any("a worker died" in said for said in told.said)
    # Nothing of the cluster is left, nor has it said anything where our own output goes.
    assert workers() == []
    assert seen
    assert not any(path.exists() for path in seen)
    assert (signal.getsignal(signal.SIGTERM), [os.environ.get(name) for name in OURS]) == before
    assert capfd.readouterr().out == ""

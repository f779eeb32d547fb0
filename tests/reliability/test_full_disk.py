"""A file system that fills up in the middle of a run: one line, exit 4, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.figures import Measured

ROOT = Path(__file__).resolve().parents[2]
FREE = (0, 4096, 100_000, 200_000, 260_000, 320_000, 400_000, 600_000, 1_000_000, 4_000_000)
"""Bytes that are left free: for no record, no unit, some units, all of them without a report."""


def own_mounts() -> bool:
    """Return whether a process may have a file system of its own here."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_with_one_line(measured: Measured) -> None:
    if not own_mounts():
        pytest.skip("no process may mount a file system of its own here")
    command = ["unshare", "-rm", sys.executable, "-m", "tests.reliability.small_disk", *map(str, FREE)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    roomy, *full = [json.loads(line) for line in done.stdout.splitlines()]
    assert (roomy["code"], roomy["units"]) == (0, 6)
    assert len(full) == len(FREE)
    for each in full:
        ended: dict[str, Any] = {key: each[key] for key in ("code", "damaged", "again", "whole", "same")}
        assert ended == {"code": 4, "damaged": [], "again": 0, "whole": True, "same": True}, each
        (said,) = each["said"]
        assert said.startswith("probe: the disk is full: ")
    units = sorted({each["units"] for each in full})
    assert (units[0], units[-1]) == (0, 6)
    assert len(units) > 2
    measured(
        "full disk",
        f"a real file system full at {len(full)} places, with {', '.join(map(str, units))} units committed: one line, "
        "exit 4, every committed unit whole; with room again equal byte for byte",
    )

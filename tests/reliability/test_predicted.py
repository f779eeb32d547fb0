"""What `--dry-run` predicts of every casebook that ships, against what the run then takes, each in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from probe.cost import size
from probe.discovery import names
from tests.reliability.figures import Measured

ROOT = Path(__file__).parents[2]


def probe_run(*arguments: str) -> Any:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "probe", "run", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("casebook", names("casebooks"))
def test_a_dry_run_is_near_what_the_run_takes(casebook: str, tmp_path: Path, measured: Measured) -> None:
    predicted = probe_run(casebook, "--dry-run", "--out", str(tmp_path / "run"))
    taken = probe_run(casebook, "--out", str(tmp_path / "run"))["cost"]["actual"]
    ratios = {
        "memory": predicted["peak_memory_bytes"] / taken["peak_memory_bytes"],
        "disk": predicted["disk_bytes"] / taken["disk_bytes"],
        "time": predicted["seconds"] / taken["seconds"],
    }
    figure = (
        f"{casebook}: {taken['units']} units (predicted {predicted['units']}), "
        f"{size(taken['peak_memory_bytes'])} (×{ratios['memory']:.2f}), {size(taken['disk_bytes'])} "
        f"(×{ratios['disk']:.2f}), {taken['seconds']:.0f} s (×{ratios['time']:.2f}), "
        f"known after {predicted['calibration_seconds']:.0f} s"
    )
    print(figure)
    measured("predicted", figure)
    for name, most in {"memory": 1.5, "disk": 1.5, "time": 2.0}.items():
        assert 1 / most <= ratios[name] <= most, figure

"""Memory does not grow with a trace: what is written and read is far larger than what is held."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.figures import Measured

ROOT = Path(__file__).parents[2]


@pytest.fixture
def emptied(tmp_path: Path) -> Iterator[Path]:
    # pytest keeps the folders of its last runs, which would be 60 GB.
    yield tmp_path / "run"
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize(
    "gigabytes",
    [
        0.1,
        pytest.param(2, marks=pytest.mark.slow),
        pytest.param(20, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)]),
    ],
)
def test_a_large_trace_is_written_read_and_verified_within_256_mib(
    emptied: Path, gigabytes: float, measured: Measured
) -> None:
    if shutil.disk_usage(emptied.parent).free < 1.2e9 * gigabytes:
        pytest.skip("the disk has no room for it")
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.large_trace", str(emptied), str(gigabytes)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    right, damaged, size, written, read, verified = json.loads(done.stdout.splitlines()[-1])
    assert right
    assert damaged == []
    # Random numbers: at most an eighth of them, sign and exponent, can be packed away.
    assert size > 0.8e9 * gigabytes
    assert max(written, read, verified) < 256
    measured(
        "20 GB",
        f"{size / 1e9:.3g} GB: over the baseline {written:.0f} MiB written, {read:.0f} MiB read, "
        f"{verified:.0f} MiB verified",
    )

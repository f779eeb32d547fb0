"""A trace of somebody else, its hashes made to fit: read, or refused by name, in little memory and time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.reliability.figures import Measured
from tests.security.trace_judge import MOST_BYTES

SLOW, NIGHTLY = 18, 10_000
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a trace takes is limited as Linux limits it")


def held(folder: Path, seeds: range, room: Path, measured: Measured) -> None:
    words = [str(folder), str(seeds.start), str(seeds.stop), str(room)]
    # A process of its own, and none that was forked: zarr reads in a thread, which a fork does not have.
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.trace_judge", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-1500:])
    ended, wrong, peak = json.loads(done.stdout)
    ends = Counter(ended)
    assert not wrong, f"{len(wrong)} wrong\n" + "\n".join(wrong[:30])
    assert sum(ends.values()) == len(seeds)
    assert min(ends["read"], ends["refused"]) > len(seeds) / 20
    assert peak <= MOST_BYTES
    measured(
        "hostile traces",
        f"{len(seeds):,} traces with one value changed and every hash made to fit: {ends['refused']:,} refused, "
        f"{ends['read']:,} read; +{peak / 2**20:.0f} MiB",
    )


@pytest.mark.slow
def test_a_trace_with_a_changed_value_is_read_or_refused(saved_once: Path, tmp_path: Path, measured: Measured) -> None:
    held(saved_once, range(SLOW), tmp_path / "room", measured)


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_10_000_traces_with_a_changed_value_are_read_or_refused(
    saved_once: Path, tmp_path: Path, measured: Measured
) -> None:
    held(saved_once, range(NIGHTLY), tmp_path / "room", measured)

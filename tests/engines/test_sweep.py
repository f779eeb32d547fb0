"""A sweep of two hundred units by four workers: how fast against one process, and with workers killed all the while.

    OMP_NUM_THREADS=1 pytest -m nightly -s tests/engines/test_sweep.py

Four cores that nothing else uses; the figures are printed, and kept with `--figures`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import probe
from probe.casebook import Casebook
from probe.engines import ray_crew
from probe.engines.engine import Job
from probe.engines.ray import ray
from probe.engines.unit import Unit
from probe.engines.unit_reader import UnitReader
from probe.limits import Limits
from probe.plan import Played
from probe.progress import Silent
from probe.reader import Reading
from probe.sample import Sample
from probe.storage.store import RunStore
from tests.engines.conftest import Told, same
from tests.engines.no_reading import NoReading
from tests.engines.test_ray import workers
from tests.reliability.figures import Measured

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.nightly,
    pytest.mark.timeout(3600),
]
NUM_WORKERS = 4
SECONDS_BETWEEN_KILLS = 3.0
"""The sweep itself takes some ten seconds."""
PLAIN = Played("baseline", "baseline", False, {})
WARM = 8
"""Units until every worker has read one."""


@pytest.fixture(scope="module")
def sweep() -> Casebook:
    """Two hundred prompts, all of their attention captured."""
    return Casebook.model_validate(
        {
            "format": 1,
            "name": "sweep",
            "question": "How fast?",
            "model": "needle",
            "workload": {"needle": {"lengths": [256, 512], "depths": [0.0, 0.25, 0.5, 0.75, 1.0], "samples": 20}},
            "stages": [
                {
                    "name": "read",
                    "conditions": {"baseline": {"role": "baseline", "capture": True}},
                    "analyses": ["effective_length", "position_bias", {"retrieval_heads": {"half": "find"}}],
                }
            ],
        }
    )


class Clock(Told):
    """Notes when each unit was done."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.at = lambda _: self.times.append(time.monotonic())

    @property
    def units_per_second(self) -> float:
        """From the unit on by which all are warm, to the last."""
        return (len(self.times) - WARM) / (self.times[-1] - self.times[WARM - 1])


@pytest.fixture(scope="module")
def one_process(sweep: Casebook, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Clock]:
    out, clock = tmp_path_factory.mktemp("one") / "run", Clock()
    probe.run(sweep, out=out, progress=clock)
    return out, clock


def test_four_workers_are_three_times_as_fast(
    sweep: Casebook, one_process: tuple[Path, Clock], tmp_path: Path, measured: Measured
) -> None:
    out, alone = one_process
    clock = Clock()
    probe.run(sweep, out=tmp_path / "run", engine={"ray": {"workers": NUM_WORKERS}}, progress=clock)
    assert same(tmp_path / "run") == same(out)
    times = clock.units_per_second / alone.units_per_second
    figure = (
        f"{len(clock.times)} units: {NUM_WORKERS} workers {clock.units_per_second:.2f} units/s, one process "
        f"{alone.units_per_second:.2f}: {times:.2f} times; findings and every array identical"
    )
    print(figure)
    measured("workers", figure)
    assert times >= 3


@contextlib.contextmanager
def killing(killed: list[int], every: float) -> Iterator[None]:
    """Within the block, kill the worker that has read longest now and then."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(every):
            # One that reads: one that makes ready would only come later.
            for worker in [each for each in workers() if each.name().startswith("ray::Worker.read")][:1]:
                os.kill(worker.pid, signal.SIGKILL)
                killed.append(worker.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_worker_killed_every_three_seconds_changes_nothing(
    sweep: Casebook, one_process: tuple[Path, Clock], tmp_path: Path, measured: Measured
) -> None:
    out, _ = one_process
    killed: list[int] = []
    clock = Clock()
    with killing(killed, SECONDS_BETWEEN_KILLS):
        run = probe.run(sweep, out=tmp_path / "run", engine={"ray": {"workers": NUM_WORKERS}}, progress=clock)
    assert run.record["status"] == "complete"
    assert same(tmp_path / "run") == same(out)
    assert killed
    figure = (
        f"{len(run)} units, {len(killed)} workers killed, one every {SECONDS_BETWEEN_KILLS:g} s: complete, findings "
        "and every array identical"
    )
    print(figure)
    measured("dead worker", figure)


def test_handing_out_stays_linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Measured) -> None:
    """Units of 512 tokens, handed to workers that do nothing with them."""
    monkeypatch.setattr(ray_crew, "Worker", NoReading)
    model = probe.load("needle")
    reader = UnitReader(model, model.provenance(), Reading())
    sample = Sample("s", tuple(range(3, 515)))
    seconds = {}
    with RunStore(tmp_path) as store:
        job = Job(reader, store, tmp_path, Limits(), Silent())
        with ray(workers=NUM_WORKERS).at_work(job) as read:
            for number in (NUM_WORKERS * WARM, 1000, 2000, 4000):
                units = [Unit(f"u-{i:012d}", (0, i), "read", PLAIN, sample, ()) for i in range(number)]
                began = time.monotonic()
                assert {unit.id for unit, _ in read(units)} == {unit.id for unit in units}
                seconds[number] = time.monotonic() - began
    shown = ", ".join(f"{number:,} units in {each:.1f} s" for number, each in seconds.items() if number >= 1000)
    figure = f"handing out by Ray to {NUM_WORKERS} workers that read nothing: {shown}"
    print(figure)
    measured("sweep", figure)
    assert seconds[4000] < 6 * seconds[1000]

"""How steps are timed: what counts, when it is enough, and the clock of a GPU that is not here."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest

from probe.benchmark.contention import Contention
from probe.benchmark.timing import Clock, EventClock, WallClock, clock_of, timed


class FakeDevice:
    """A GPU whose work takes as long as it is told to, and whose events know when they were reached."""

    def __init__(self) -> None:
        self.milliseconds = 0.0
        self.waited = 0

    def work(self, milliseconds: float) -> None:
        self.milliseconds += milliseconds

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def wait(self) -> None:
        self.waited += 1


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.at: float | None = None

    def record(self) -> None:
        self.at = self.device.milliseconds

    def elapsed_time(self, later: FakeEvent) -> float:
        assert self.device.waited, "an event may be read only once the device has reached it"
        assert self.at is not None
        assert later.at is not None
        return later.at - self.at


def test_events_time_each_step_on_the_device() -> None:
    device = FakeDevice()
    clock = EventClock(device.event, device.wait)
    steps = [("forward", lambda: device.work(40)), ("scan", lambda: device.work(60))]
    found = timed(steps, clock, repeats=3, enough_seconds=100)
    assert found.parts == {"forward": pytest.approx((0.04,) * 3), "scan": pytest.approx((0.06,) * 3)}
    assert found.warm_up == pytest.approx(0.1)
    assert device.waited == 4


def test_what_the_host_does_between_runs_is_not_the_devices_time() -> None:
    device = FakeDevice()
    clock = EventClock(device.event, device.wait)
    first = clock.mark()
    device.work(5)
    second = clock.mark()
    device.work(1000)
    assert clock.seconds([first, second]) == pytest.approx([0.005])


class Ticks:
    """A clock on which each mark is one second after the one before."""

    name = "ticks"

    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def seconds(self, marks: list[int]) -> list[float]:
        return [float(later - earlier) for earlier, later in pairwise(marks)]


@pytest.mark.parametrize(("repeats", "enough", "runs"), [(5, 100.0, 5), (5, 3.0, 3), (5, 0.0, 1), (1, 100.0, 1)])
def test_runs_end_when_there_are_enough(repeats: int, enough: float, runs: int) -> None:
    calls = []
    clock: Clock = Ticks()
    found = timed([("step", lambda: calls.append(1))], clock, repeats=repeats, enough_seconds=enough)
    assert len(found.parts["step"]) == runs
    assert len(calls) == runs + 1


def test_a_device_that_works_behind_the_host_is_waited_for() -> None:
    waited = []
    clock = WallClock(lambda: waited.append(1))
    timed([("step", lambda: None)], clock, repeats=1, enough_seconds=1)
    assert len(waited) == 4


def test_a_cpu_has_the_process_own_clock() -> None:
    assert clock_of("cpu").name == "perf_counter"


def test_what_other_programs_take_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two seconds the machine works five core seconds, three of them for this process: one core is others'."""
    stat, ticks, now = tmp_path / "stat", os.sysconf("SC_CLK_TCK"), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "times", lambda: (now[0] * 1.5, 0.0, 0.0, 0.0, 0.0))
    stat.write_text(f"cpu {10 * ticks} 0 0 99999 0 0 0 0 0 0\ncpu0 0\n")
    others = Contention(stat)
    now[0] = 2.0
    stat.write_text(f"cpu {13 * ticks} 0 {1 * ticks} 199999 0 0 0 {1 * ticks} 0 0\ncpu0 0\n")
    assert others.busy_cores() == pytest.approx(1.0)


def test_a_system_that_does_not_say_is_no_error(tmp_path: Path) -> None:
    assert Contention(tmp_path / "nowhere").busy_cores() is None

"""Times steps: a warm-up run that does not count, then runs until there are enough; events on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

Step = tuple[str, Callable[[], object]]
"""A part of what is measured: its name, and what does it."""


class Clock(Protocol):
    """Marks moments, and says what lay between them."""

    name: str
    """What the JSON calls it."""

    def mark(self) -> Any:
        """Return this moment in the work of the device."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Wait until everything is done, and return the seconds between consecutive marks."""


class WallClock:
    """The process's own clock, for devices that have finished when a call returns or can be waited for."""

    name = "perf_counter"

    def __init__(self, wait: Callable[[], object] | None = None) -> None:
        self.wait = wait

    def mark(self) -> float:
        """Wait for the device where that is asked for, and return the time."""
        if self.wait is not None:
            self.wait()
        return time.perf_counter()

    def seconds(self, marks: Sequence[float]) -> list[float]:
        """Return the differences."""
        return [later - earlier for earlier, later in pairwise(marks)]


class EventClock:
    """A GPU's own clock: events in its stream, which no waiting on the host's side disturbs."""

    name = "cuda events"

    def __init__(self, new_event: Callable[[], Any], wait: Callable[[], object]) -> None:
        """Take what makes an event that records time, and what waits for the device."""
        self.new_event = new_event
        self.wait = wait

    def mark(self) -> Any:
        """Record an event."""
        event = self.new_event()
        event.record()
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Wait, and return the seconds between consecutive events, which CUDA gives in milliseconds."""
        self.wait()
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairwise(marks)]


@dataclass(frozen=True)
class Timed:
    """Seconds of every run."""

    warm_up: float
    """The first run, its steps together."""
    parts: dict[str, tuple[float, ...]]
    """Name of a step → its seconds in each run after that."""


def timed(steps: Sequence[Step], clock: Clock, *, repeats: int, enough_seconds: float) -> Timed:
    """Run the steps one after the other, once to warm up and then up to `repeats` times, at least once.

    No further run begins once the runs after the first have taken `enough_seconds` together.
    """
    warm_up = sum(_once(steps, clock))
    runs: list[list[float]] = []
    while not runs or (len(runs) < repeats and sum(map(sum, runs)) < enough_seconds):
        runs.append(_once(steps, clock))
    return Timed(warm_up, {name: tuple(run[i] for run in runs) for i, (name, _) in enumerate(steps)})


def _once(steps: Sequence[Step], clock: Clock) -> list[float]:
    marks = [clock.mark()]
    for _, do in steps:
        do()
        marks.append(clock.mark())
    return clock.seconds(marks)


def clock_of(device: str) -> Clock:
    """Return the clock that fits the device."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return EventClock(lambda: torch.cuda.Event(enable_timing=True), torch.cuda.synchronize)
    return WallClock(torch.mps.synchronize if kind == "mps" else None)

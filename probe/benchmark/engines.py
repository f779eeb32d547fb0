"""The scan's implementations, as a benchmark tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probe.errors import UsageError

if TYPE_CHECKING:
    from probe.kernels.scan import Scan


@dataclass(frozen=True)
class BenchEngine:
    """One way to run the scan."""

    why_not: Callable[[str], str | None]
    """Device → why it does not run there; None where it does."""
    scan: Callable[[Sequence[str]], Scan]
    """Statistics → a scan of that kind."""


def _blocked(statistics: Sequence[str]) -> Scan:
    from probe.kernels.scan import Scan

    return Scan(statistics, engine="blocked")


def _triton(statistics: Sequence[str]) -> Scan:
    from probe.kernels.scan import Scan

    return Scan(statistics, engine="triton")


def _needs_cuda(device: str) -> str | None:
    return None if device.startswith("cuda") else "it runs on a CUDA device"


ENGINES = {
    "triton": BenchEngine(_needs_cuda, _triton),
    "blocked": BenchEngine(lambda device: None, _blocked),
}
"""Name → implementation, in the order of the table."""


def engines_of(asked: Sequence[str] | None, device: str) -> tuple[str, ...]:
    """Return the engines to measure: those asked for, or all that run on the device.

    Raises UsageError where one that was asked for does not exist or does not run there.
    """
    if asked is None:
        return tuple(name for name, engine in ENGINES.items() if engine.why_not(device) is None)
    for name in asked:
        if name not in ENGINES:
            raise UsageError(f"--engines: there is no {name!r}; there are {', '.join(ENGINES)}")
        if reason := ENGINES[name].why_not(device):
            raise UsageError(f"--engines: {name} cannot be measured on {device}: {reason}")
    return tuple(asked)

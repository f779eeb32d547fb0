"""How much memory is free, and how much a measurement took at most."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Protocol

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"


class Meter(Protocol):
    """Says what is in use, and what was at most."""

    name: str
    """What the JSON calls it."""

    def begin(self) -> int:
        """Forget the peak so far, and return the bytes in use."""

    def peak(self) -> int:
        """Return the most bytes in use since `begin`."""


class ProcessMemory:
    """Resident memory of this process. Where the system cannot forget a peak (anywhere but Linux), a higher one from
    before `begin` stays; each measurement therefore has a process of its own."""

    name = "resident memory of a process of its own"

    def begin(self) -> int:
        """Give free pages back, forget the peak, and return the resident bytes."""
        from probe.kernels.heap import trim

        trim()
        try:
            (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        except OSError:
            return self.peak()
        return self._status("VmRSS")

    def peak(self) -> int:
        """Return the largest resident size."""
        if (_PROCESS / "status").exists():
            return self._status("VmHWM")
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def _status(self, field: str) -> int:
        lines = (_PROCESS / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


class CudaMemory:
    """What torch has allocated on a GPU."""

    name = "allocated on the GPU"

    def __init__(self, device: str) -> None:
        self.device = device

    def begin(self) -> int:
        """Give the cache back, forget the peak, and return the allocated bytes."""
        import torch

        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return int(torch.cuda.memory_allocated(self.device))

    def peak(self) -> int:
        """Return the most bytes that were allocated at once."""
        import torch

        torch.cuda.synchronize(self.device)
        return int(torch.cuda.max_memory_allocated(self.device))


def meter_of(device: str) -> Meter:
    """Return the meter that fits the device."""
    return CudaMemory(device) if device.startswith("cuda") else ProcessMemory()


def available_bytes(device: str) -> int | None:
    """Return the memory that a measurement could have: on a GPU, what this process holds there too (a model's weights
    are part of what a measurement of it needs); None where the system does not say."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    found = [free for free in (_system_free(), _container_free()) if free is not None]
    return min(found, default=None)


def total_bytes() -> int | None:
    """Return the machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _system_free() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return total_bytes()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _container_free() -> int | None:
    """What a container's limit leaves, where there is one (cgroup version 2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        facts = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cached = next((int(fact[1]) for fact in facts if fact[0] == "file"), 0)
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used + cached)

"""What reading one sample takes on this machine: seconds, and the most memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_PROCESS = Path("/proc/self")
_FORGET_PEAK = "5"


@contextmanager
def measured(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield a mapping that holds, after the block, its `seconds`, `peak_bytes` and what `memory` these are.

    On a GPU the memory is what was allocated there at most, elsewhere what the process held at most, the model with it;
    None where the system cannot forget an earlier peak (anywhere but Linux).
    """
    cost: dict[str, Any] = {}
    peak = _begin(device)
    began = time.perf_counter()
    yield cost
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    cost["seconds"] = time.perf_counter() - began
    cost["peak_bytes"] = _peak(device) if peak else None
    cost["memory"] = "allocated on the GPU" if device.type == "cuda" else "resident in the process"


def _begin(device: torch.device) -> bool:
    """Forget the peak so far; return whether that could be done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        (_PROCESS / "clear_refs").write_text(_FORGET_PEAK)
    except OSError:
        return False
    return True


def _peak(device: torch.device) -> int:
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else resident_peak()


def resident_peak() -> int:
    """Return the most memory that this process held, in bytes; since it was last forgotten, where it can be."""
    if not (_PROCESS / "status").is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""The device and the dtype that somebody asks for by name."""

from __future__ import annotations

from typing import Literal

import torch

from probe.errors import UsageError


def found_device(device: str | torch.device) -> torch.device:
    """Return a device that is there; raises `UsageError` naming those that are."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = torch.device("meta")
    counts = {"cpu": 1}
    for kind in ("cuda", "mps", "xpu"):
        if (module := getattr(torch, kind)).is_available():
            counts[kind] = module.device_count()
    if (found.index or 0) < counts.get(found.type, 0):
        return found
    there = ", ".join(kind if kind == "cpu" else f"{kind}:{i}" for kind, n in counts.items() for i in range(n))
    raise UsageError(f"there is no device {str(device)!r} to run a model on; there is {there}")


def found_dtype(dtype: str | torch.dtype) -> torch.dtype | Literal["auto"]:
    """Return a dtype that models run in, or `auto`: as stored; raises `UsageError` for any other."""
    if dtype == "auto":
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        said = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
        raise UsageError(f"unknown dtype {said!r}; expected auto, float32, bfloat16, float16 or float64")
    assert isinstance(found, torch.dtype)
    return found

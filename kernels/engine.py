"""Which implementation of the scan runs where: Triton on CUDA, blocked torch elsewhere, the definition on request."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.call import Call

EngineName = Literal["auto", "triton", "blocked", "reference"]
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the Triton kernels read; a float64 model keeps its digits in the blocked scan."""


class Engine(Protocol):
    """Computes the statistics of kind `scan` and adds them to the series and tallies that it was made with."""

    @property
    def name(self) -> str:
        """What a trace says ran."""

    def take(self, call: Call, tokens: Tensor | None, tokens_start: int) -> None:
        """Take the next call; `tokens` are the sample's from position `tokens_start` on, up to the last key."""

    def finish(self) -> None:
        """Add what is left after the last call."""


def choose(name: EngineName, call: Call) -> Literal["triton", "blocked", "reference"]:
    """Return the engine that runs a call; raises `UsageError` where the one asked for cannot."""
    device, dtype = call.query.device, call.query.dtype
    if name not in get_args(EngineName):
        raise UsageError(f"there is no engine {name!r}; there are {', '.join(get_args(EngineName))}")
    if name == "auto":
        return "triton" if find_spec("triton") and dtype in TRITON_DTYPES and _compiles_for(device) else "blocked"
    if name == "triton":
        if not find_spec("triton"):
            raise UsageError("engine 'triton' needs the package triton, which is not installed")
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise UsageError("engine 'triton' needs a GPU; on a CPU it runs interpreted, with TRITON_INTERPRET=1 set")
        if device.type != "cpu" and not _compiles_for(device):
            raise UsageError(f"engine 'triton' needs an NVIDIA GPU of compute capability 8.0 or more, not {device}")
        if dtype not in TRITON_DTYPES:
            raise UsageError(f"engine 'triton' takes float32, float16 and bfloat16, not {dtype}")
    return name


def _compiles_for(device: torch.device) -> bool:
    # ROCm calls itself cuda too; the kernels have been compiled for neither it nor for older chips.
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)

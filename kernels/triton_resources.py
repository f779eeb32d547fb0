"""Compiles the Triton kernels for GPUs that need not be there, and reads what they take of one."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from probe.kernels.call import Call
from probe.kernels.statistic import Statistic
from probe.kernels.triton_kernel import normalise, scan
from probe.kernels.triton_launch import Launch


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes of a multiprocessor."""

    kernel: str
    """`normalise`, `scan`, or `scan of distances from …`."""
    architecture: int
    """Compute capability times ten: 90 for an H100."""
    registers: int
    """Registers of a thread; 255 is the most there are."""
    spilled_bytes: int
    """Bytes a thread keeps in slow local memory, because the registers did not hold them."""
    shared_bytes: int
    """Bytes of shared memory of a program."""
    num_warps: int
    """Warps of a program."""


def compile_for(
    architecture: int,
    call: Call,
    statistics: Sequence[Statistic],
    *,
    deterministic: bool = False,
    **blocks: int | None,
) -> list[Resources]:
    """Compile the kernels for a call, as a launch on such a GPU would, and return what they take.

    The call's tensors lie on the CPU and are not read. Triton must not have been imported under TRITON_INTERPRET=1.
    """
    launch = Launch(call, statistics, **blocks, architecture=architecture)
    normaliser = torch.empty((call.num_heads, call.num_queries)), torch.empty((call.num_heads, call.num_queries))
    tokens = call.tokens if call.tokens is not None else torch.zeros(call.num_keys, dtype=torch.int64)
    finite = torch.ones(call.num_heads, dtype=torch.bool)
    layout = launch.layout(finite, tokens, call.key_start, deterministic=deterministic)
    with _pretending(architecture):
        arguments, options = launch.normalise_arguments(*normaliser)
        found = [_resources("normalise", architecture, normalise.warmup(*arguments, **options, grid=launch.grid))]
        for pass_ in launch.passes(layout):
            arguments, options = launch.scan_arguments(pass_, layout, *normaliser)
            name = "scan" if pass_.distances is None else f"scan of distances from {pass_.distances[0]}"
            found.append(_resources(name, architecture, scan.warmup(*arguments, **options, grid=launch.grid)))
    return found


@contextmanager
def _pretending(architecture: int) -> Iterator[None]:
    # `driver.active` would look for a GPU.
    before = driver._active
    driver.set_active(_Pretended(architecture))
    try:
        yield
    finally:
        driver._active = before


class _Pretended:
    """The little of a driver that compiling asks for."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        # Triton keeps what it compiled by device: each architecture is one of its own.
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


def _resources(name: str, architecture: int, kernel: Any) -> Resources:
    usage = _usage(kernel.asm["cubin"])
    return Resources(
        name,
        architecture,
        usage["REG"],
        max(usage["STACK"], usage["LOCAL"]),
        int(kernel.metadata.shared),
        int(kernel.metadata.num_warps),
    )


def _usage(cubin: bytes) -> Mapping[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", told)}

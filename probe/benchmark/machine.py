"""What a benchmark ran on, so that its figures can be compared with another's."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from probe.benchmark.contention import all_cores
from probe.benchmark.memory import total_bytes
from probe.benchmark.result import Machine


def machine(device: str) -> Machine:
    """Return the facts of this machine; those of the GPU where `device` is one."""
    import torch

    gpu = torch.cuda.get_device_properties(torch.device(device)) if device.startswith("cuda") else None
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=_cores(),
        all_cores=all_cores(),
        memory_bytes=total_bytes(),
        gpu=None if gpu is None else gpu.name,
        gpu_memory_bytes=None if gpu is None else gpu.total_memory,
        compiler=_compiler(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        triton=_version("triton"),
        transformers=_version("transformers"),
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _compiler() -> str | None:
    candidates = filter(None, (os.environ.get("CXX"), "g++", "clang++"))
    return next((Path(name).name for name in candidates if shutil.which(name)), None)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "Apple"
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

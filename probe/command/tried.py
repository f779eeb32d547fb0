"""What is tried in processes of their own, so that one that dies ends no other: GPUs, the scans, the backends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import probe
from probe import discovery
from probe.command.checkup import Check, without_places

if TYPE_CHECKING:
    from probe.kernels.engine import EngineName

LONGEST_SECONDS: Final = 180.0
_TOLERANCE: Final = 1e-3
"""Of sums in float32 against their definitions in float64; the tests of the scans are closer."""


def tried(names: Sequence[str]) -> Iterator[Check]:
    """Start what is to be tried, all at once, and yield what came of each in turn.

    A process that dies, hangs or says nothing is a broken line with its last words.
    """
    root = str(Path(probe.__file__).parents[1])
    paths = os.pathsep.join(path for path in (root, os.environ.get("PYTHONPATH", "")) if path)
    # Nothing is fetched, and the exact comparison is made now, not remembered.
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "probe.command.tried", name],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    until = time.monotonic() + LONGEST_SECONDS
    for name, process in zip(names, started, strict=True):
        try:
            out, err = process.communicate(timeout=max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            yield _broken(name, f"no answer within {LONGEST_SECONDS:.0f} s")
            continue
        lines = [line for line in out.splitlines() if line.startswith("{")]
        yield from (Check(**json.loads(line)) for line in lines)
        if process.returncode or not lines:
            last = (err.strip().splitlines() or ["it said nothing"])[-1]
            yield _broken(name, without_places(f"ended with status {process.returncode}: {last}"))


def _broken(name: str, said: str) -> Check:
    backend = name in discovery.names("backends")
    return Check("backends" if backend else "computing", name, "broken", said, needed=name in ("huggingface", "scan"))


def backend(name: str) -> Iterator[Check]:
    """Open the specimen with a backend, read a few tokens, and hold its attention against the model's own eager one."""
    from probe.errors import NotAvailable, ProbeError

    extra = discovery.get("backends", name).extra
    needed, cure = extra is None, f"pip install 'longcontext-probe[{extra}]'" if extra else ""
    try:
        model = probe.load("needle", backend=name)
        sample = next(iter(probe.needle(lengths=(64,), depths=(0.5,), samples=1).build(model.tokenizer)))
        trace = probe.trace(model, sample, statistics=["entropy"])
    except NotAvailable as error:
        yield Check("backends", name, "broken" if needed else "missing", without_places(str(error)), cure, needed)
        return
    except ProbeError as error:
        yield Check("backends", name, "broken", without_places(str(error)), cure, needed)
        return
    right = trace.outcome is not None and trace.outcome.correct
    said = "reads the specimen, each call as the model computes it" if right else "the specimen's answer is wrong"
    yield Check("backends", name, "ok" if right else "broken", said, "" if right else cure, needed)


def scan() -> Iterator[Check]:
    """Hold the scans that run here against the definitions in float64, after what the GPUs are."""
    import torch

    from probe.kernels.program import has_compiler, program

    yield Check("computing", "threads", "ok", f"{torch.get_num_threads()} of torch")
    yield _held("blocked scan", "cpu", "blocked", needed=True)
    if has_compiler():
        made = program(("doctor",), lambda x: [(x * 2).sum(-1)], [torch.linspace(0, 1, 64).reshape(4, 16)])
        said = "compiles and gives the same numbers" if made else "what it compiles does not run; the scan is slower"
        yield Check("computing", "compiled scan", "ok" if made else "broken", said, "" if made else "install g++")
    if not torch.cuda.is_available():
        yield Check("computing", "GPU", "missing", "none that CUDA sees; everything runs on the CPU, slower")
        return
    driver = _driver()
    for i in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(i)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        said = f"{of.name}, compute capability {of.major}.{of.minor}, {of.total_memory / 1e9:.0f} GB, {bf16}{driver}"
        yield Check("computing", f"GPU {i}", "ok", said)
        if (of.major, of.minor) >= (8, 0):
            yield _held(f"Triton scan on GPU {i}", f"cuda:{i}", "triton")
        else:
            yield Check("computing", f"Triton scan on GPU {i}", "missing", "needs compute capability 8.0 or more")


def _driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f", driver {done.stdout.split()[0]}" if done.stdout.split() else ""


def _held(name: str, device: str, engine: EngineName, *, needed: bool = False) -> Check:
    """Compute two statistics of one small call by an implementation and by their definitions."""
    import torch

    from probe.kernels.call import Call
    from probe.kernels.scan import Scan

    drawn = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(n, 96, 32, generator=drawn) for n in (4, 2, 2))
    found = []
    try:
        pairs: list[tuple[str, EngineName]] = [(device, engine), ("cpu", "reference")]
        for where, how in pairs:
            call = Call(
                layer=0,
                query=query.to(where),
                key=key.to(where),
                value=value.to(where),
                scale=32**-0.5,
                phase="prefill",
            )
            scanned = Scan(["entropy", "received_mass"], engine=how)
            scanned.update(call)
            found.append(scanned.finish())
        off = max(
            float((found[0][key].values.cpu().double() - found[1][key].values.double()).abs().max()) for key in found[1]
        )
    # A driver, a compiler or a device may fail in any way; the line says how.
    except Exception as error:  # noqa: BLE001
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return Check("computing", name, "broken", without_places(said), needed=needed)
    if not off < _TOLERANCE:
        return Check("computing", name, "broken", f"off by {off:.2g} from the definitions in float64", needed=needed)
    return Check("computing", name, "ok", f"within {off:.1g} of the definitions in float64", needed=needed)


def main(name: str) -> None:
    """Try one thing by name and print what came of it, a JSON object a line."""
    chosen: Callable[[], Iterator[Check]] = scan if name == "scan" else lambda: backend(name)
    for check in chosen():
        print(json.dumps(asdict(check)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

"""Makes one measurement: here, or in a process of its own."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import probe
from probe import errors
from probe.benchmark.cases import case_of
from probe.benchmark.contention import Contention
from probe.benchmark.memory import available_bytes, meter_of
from probe.benchmark.result import Job, Measurement, Plan
from probe.benchmark.timing import clock_of, timed
from probe.errors import ProbeError

LOADING_TOKENS = 256
"""Tokens of the run that loads and compiles code before memory is looked at."""
KILLED = (-9, 137)
"""How a process ends that the system killed, most often for its memory."""
_OUT_OF_MEMORY = "it ran out of memory, though by arithmetic it might have fitted"


def measure(plan: Plan, job: Job) -> Measurement:
    """Measure in this process: a run at a few tokens, one at the job's length, then the timed ones.

    Running out of memory is an answer and no error.
    """
    import torch

    free = available_bytes(plan.device)
    needed = case_of(job.case).needed_bytes(plan, job)
    facts = Measurement(job=job, needed_bytes=needed, available_bytes=free)
    if needed is not None and free is not None and needed > free:
        return facts.model_copy(update={"skipped": "it does not fit into memory"})
    if plan.device == "cpu":
        torch.set_num_threads(plan.threads)
    try:
        # Events, and Triton's kernels, go to the device that is the current one.
        with torch.cuda.device(plan.device) if plan.device.startswith("cuda") else nullcontext():
            return _measured(plan, job, facts)
    except torch.OutOfMemoryError:
        return facts.model_copy(update={"skipped": _OUT_OF_MEMORY})
    except RuntimeError as error:
        # On a CPU torch has no class of its own for it.
        if "can't allocate memory" not in str(error):
            raise
        return facts.model_copy(update={"skipped": _OUT_OF_MEMORY})
    finally:
        gc.collect()


def _measured(plan: Plan, job: Job, facts: Measurement) -> Measurement:
    case, clock, meter = case_of(job.case), clock_of(plan.device), meter_of(plan.device)
    short = job.model_copy(update={"length": min(job.length, LOADING_TOKENS)})
    loading = timed(case.prepare(plan, short).steps, clock, repeats=1, enough_seconds=0.0).warm_up
    prepared = case.prepare(plan, job)
    gc.collect()
    before = meter.begin()
    others = Contention()
    runs = timed(prepared.steps, clock, repeats=plan.repeats, enough_seconds=plan.enough_seconds)
    return facts.model_copy(
        update={
            "ran": prepared.ran(),
            "parts": runs.parts,
            "warm_up_seconds": runs.warm_up,
            "loading_seconds": loading,
            "clock": clock.name,
            "before_bytes": before,
            "peak_bytes": meter.peak(),
            "memory": meter.name,
            "busy_cores": others.busy_cores(),
        }
    )


def measure_apart(plan: Plan, job: Job) -> Measurement:
    """Measure in a process of its own, whose peak memory is then this measurement's alone.

    Raises the ProbeError that the other process met; RuntimeError, with what it said, for any other way to fail.
    """
    place = str(Path(probe.__file__).parent.parent)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(plan.threads),
        "MKL_NUM_THREADS": str(plan.threads),
    }
    asked = json.dumps({"plan": plan.model_dump(), "job": job.model_dump()})
    done = subprocess.run(_command(), input=asked, capture_output=True, text=True, env=environment, check=False)
    if done.returncode in KILLED:
        return Measurement(job=job, skipped=f"{_OUT_OF_MEMORY}: the system ended it")
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"the process that measured {job} ended with {done.returncode}:\n{done.stderr}")
    told = json.loads(lines[-1])
    if "error" in told:
        kind = getattr(errors, told["error"], ProbeError)
        raise kind(told["message"])
    return Measurement.model_validate(told)


def _command() -> list[str]:
    # Without -P a folder called probe where the user stands would come first.
    return [sys.executable, "-P", "-m", "probe.benchmark.worker"]

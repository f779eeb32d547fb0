"""Goes through the lengths: every case at every one of them, what does not fit left out and said so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import probe
from probe.benchmark.cases import CASES
from probe.benchmark.machine import machine
from probe.benchmark.measuring import measure, measure_apart
from probe.benchmark.model_cases import forget_models
from probe.benchmark.result import Bench, Job, Measurement, Plan, Section
from probe.progress import Progress


def jobs(plan: Plan) -> list[Job]:
    """Return what a plan measures, in order. A model that has to be found comes first: it may not be there."""
    sections: list[Section] = ["layer", "model"]
    if plan.model is not None and plan.model.loaded:
        sections.reverse()
    return [job for section in sections for job in _jobs_of(plan, section)]


def climb(
    plan: Plan, *, command: str, progress: Progress, so_far: Callable[[Bench], None] = lambda bench: None
) -> Bench:
    """Measure everything in a plan; `so_far` gets the result before the first measurement and after each.

    On a CPU each measurement has a process of its own; a GPU keeps its own count of memory.
    """
    todo = jobs(plan)
    bench = Bench(
        probe=probe.__version__,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        complete=False,
        machine=machine(plan.device),
        plan=_without_folders(plan),
        measurements=(),
    )
    so_far(bench)
    progress.start(len(todo))
    on_gpu = plan.device.startswith("cuda")
    try:
        for job in todo:
            found: Measurement = measure(plan, job) if on_gpu else measure_apart(plan, job)
            bench = bench.model_copy(update={"measurements": (*bench.measurements, found)})
            so_far(bench)
            progress.advance(f"{job.length:,} tokens, {job.statistics or 'no statistics'}: {_label(job)}")
    finally:
        forget_models()
    bench = bench.model_copy(update={"complete": True})
    so_far(bench)
    return bench


def _jobs_of(plan: Plan, section: Section) -> Iterator[Job]:
    wanted = plan.layer if section == "layer" else plan.model
    if wanted is None:
        return
    for length in plan.layer_lengths if section == "layer" else plan.model_lengths:
        for case in CASES:
            if case.section == section:
                yield from case.jobs(plan, length)


def _label(job: Job) -> str:
    return next(case.label(job) for case in CASES if case.name == job.case)


def _without_folders(plan: Plan) -> Plan:
    if plan.model is None or not Path(plan.model.name).is_dir():
        return plan
    return plan.model_copy(update={"model": plan.model.model_copy(update={"name": Path(plan.model.name).name})})

"""What a run would take: units, memory, disk and time, from two short reads."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from probe import capture, plan
from probe.casebook import Casebook
from probe.errors import UsageError
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.sample import Sample
from probe.stage import Condition, FromFinding, MatchedControl, Stage, parts_of
from probe.storage.store import RunStore

_SCAN_BYTES: Final = 96 << 20
"""Scores of the blocks that a scan holds, as measured."""
_UNIT_BYTES: Final = 8_000
"""What a unit takes on a disk beyond its bytes: its last blocks, its line in the commit record."""
_LONGEST_TRIAL: Final = 2048
"""Most tokens of a trial read, where the casebook's lengths allow the choice."""


@dataclass(frozen=True)
class StageEstimate:
    """What one stage would read."""

    name: str
    """Name of the stage."""
    units: int
    """Units that it reads; an upper bound where `at_most`."""
    at_most: bool
    """Whether an earlier finding decides how many there really are."""
    seconds: float
    """Time, extrapolated."""


@dataclass(frozen=True)
class DryRun:
    """What a run would take. Time and disk are extrapolated from two reads, memory is computed."""

    units: int
    """Units in all, at most."""
    peak_memory_bytes: int
    """Resident memory at the longest prompt, weights included."""
    disk_bytes: int
    """Size of the run folder, without plotly's 5 MB in the report."""
    seconds: float
    """Time in all."""
    stages: list[StageEstimate]
    """Stage by stage."""


def estimate(book: Casebook, model: HuggingFaceModel) -> DryRun:
    """Return what playing `book` on `model` would take; reads two of its samples to know."""
    samples = list(plan.halved(book.build_workload().build(model.tokenizer)))
    if not samples:
        raise UsageError("the workload makes no sample")
    requests = [r for stage in book.stages for r in plan.requests_of(stage, model)]
    lengths = sorted({len(sample) for sample in samples})
    short = next(s for s in samples if len(s) == lengths[0])
    longer = max((s for s in samples if len(s) <= max(_LONGEST_TRIAL, lengths[0])), key=len)
    watched = _fit(model, (short, longer), requests)
    alone = _fit(model, (short, longer), [])
    stages = []
    disk = 0.0
    for stage in book.stages:
        units, seconds = 0, 0.0
        for condition in stage.conditions.values():
            chosen = _chosen(book, stage, condition, samples, model)
            times = _times(condition)
            each, per_token = watched if condition.capture else alone
            units += times * len(chosen)
            seconds += times * sum(each(len(s)) for s in chosen)
            stored = 6 + (per_token if condition.capture else 0)
            disk += times * sum(_UNIT_BYTES + stored * len(s) for s in chosen)
        at_most = stage.lengths == "solved" or any(map(_may_be_left_out, stage.conditions.values()))
        stages.append(StageEstimate(stage.name, units, at_most, seconds))
    return DryRun(
        units=sum(stage.units for stage in stages),
        peak_memory_bytes=_peak(model, max(lengths), watched[1]),
        disk_bytes=int(disk),
        seconds=sum(stage.seconds for stage in stages),
        stages=stages,
    )


def _fit(model: HuggingFaceModel, samples: Sequence[Sample], requests: list[Any]) -> tuple[Any, float]:
    """Time two reads, written as a run writes them; return seconds as a + b·n + c·n² of the prompt length, and bytes
    a token."""
    points: list[tuple[int, float]] = []
    stored = 0.0
    with tempfile.TemporaryDirectory() as folder, RunStore(folder) as store:
        for i, sample in enumerate((samples[0], *samples)):
            begun = time.perf_counter()
            with store.begin_unit(f"trial-{i}-000000000000", sample=sample) as writer:
                writer.commit(capture.read(model, sample, requests, writer))
            points.append((len(sample), time.perf_counter() - begun))
            files = Path(folder, "trace.zarr", f"trial-{i}-000000000000").rglob("*")
            stored = sum(f.stat().st_size for f in files if f.is_file()) / len(sample)
    # The first read warms up and does not count.
    (n, t), (m, u) = points[1:]
    curve = max(0.0, (u / m - t / n) / (m - n)) if m != n else 0.0
    slope = max(0.0, u / m - curve * m)

    def seconds(length: int) -> float:
        return max(min(t, u), slope * length + curve * length * length)

    return seconds, stored


def _chosen(
    book: Casebook, stage: Stage, condition: Condition, samples: list[Sample], model: HuggingFaceModel
) -> list[Sample]:
    if condition.workload:
        samples = list(plan.halved(book.build_workload(condition.workload).build(model.tokenizer)))
    return [s for s in samples if stage.half in ("both", s.facts["half"])]


def _times(condition: Condition) -> int:
    return condition.intervention.draws if isinstance(condition.intervention, MatchedControl) else 1


def _may_be_left_out(condition: Condition) -> bool:
    """Return whether a condition is played only where a finding suggests enough for it."""
    return any(isinstance(part, FromFinding) for part in parts_of(condition.intervention))


def _peak(model: HuggingFaceModel, length: int, stored_per_token: float) -> int:
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    width = model.dtype.itemsize
    cache = sum(2 * kv * dim * length * width for kv, dim in zip(model.num_kv_heads, model.head_dim, strict=True))
    logits = min(length, capture.CHUNK_TOKENS) * model.vocab_size * (width + 4)
    return int(now + cache + logits + _SCAN_BYTES + stored_per_token * length)


__all__ = ["DryRun", "StageEstimate", "estimate"]

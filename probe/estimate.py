"""What a run would take: units, memory, disk and time, from a short calibration."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from probe import capture, discovery, plan
from probe.calibration import Calibration, Curve, Trial, spread
from probe.engines.unit_reader import UnitReader
from probe.errors import NotAvailable, ProbeError, UsageError
from probe.finding import Finding
from probe.plan import Played
from probe.playing import Player
from probe.reading_cost import resident_peak
from probe.reporting.report import write_report
from probe.sample import Sample
from probe.stage import Condition, FromFinding, MatchedControl, Stage, labelled, parts_of
from probe.storage.durable import write_json
from probe.storage.seal import write_record
from probe.storage.trace_store import Run

CALIBRATION_SECONDS: Final = 10.0
"""How long a dry run goes on to begin readings from which it learns what they take."""
SHORT_SECONDS: Final = 1.0
"""A prompt that is expected to take longer is not read under every condition."""
_SCAN_BYTES: Final = 96 << 20
"""Scores of the blocks that a scan holds at most, as measured."""
_RECORD_BYTES: Final = 50_000
"""A run's own records, beside findings and report."""


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
    """Time to read and to analyse them."""
    disk_bytes: int = 0
    """Sizes of the files that they leave, added up."""


@dataclass(frozen=True)
class DryRun:
    """What a run would take, extrapolated from a few prompts that were read."""

    units: int
    """Units in all, at most."""
    peak_memory_bytes: int
    """Most resident memory of the process; weights are part of it where they are not on a GPU."""
    peak_device_bytes: int | None
    """Most memory allocated on the GPU; None where there is none."""
    disk_bytes: int
    """Sizes of the files of the run folder, added up."""
    seconds: float
    """Time from the opening of the model to the end of the report: prompts, reading, analyses, report."""
    stages: list[StageEstimate]
    """Stage by stage."""
    calibration_seconds: float = 0.0
    """How long it took to know this."""


@dataclass(frozen=True)
class _Plain:
    """What reading without an intervention takes."""

    seconds: Curve
    bytes: Curve
    trials: tuple[Trial, ...]


def estimate(player: Player, *, ready_seconds: float = 0.0, thorough: bool = True) -> DryRun:
    """Return what a run would take; a few of its samples are read to know it.

    `ready_seconds` is what opening the model and making the prompts took. `thorough` reads under each condition and
    makes the analyses and the report of what was read; else interventions count as nothing, and analyses too.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="probe-calibration-") as folder:
        reader = UnitReader(player.model, player.provenance, player.reading, player.private)
        calibration = Calibration(reader, Path(folder), began + CALIBRATION_SECONDS)
        with calibration.store():
            return _Estimate(player, calibration, thorough).result(ready_seconds, began)


@dataclass
class _Estimate:
    player: Player
    calibration: Calibration
    thorough: bool
    findings: dict[str, Finding] = field(default_factory=dict)
    found: list[Finding] = field(default_factory=list)
    plain: dict[str, _Plain] = field(default_factory=dict)
    ratios: dict[tuple[str, str], float] = field(default_factory=dict)
    """How many times as long each condition takes as reading alone, by stage and condition."""
    longest: int = 0
    peak: int = 0
    failed: str = ""

    def result(self, ready_seconds: float, began: float) -> DryRun:
        stages: list[StageEstimate] = []
        for stage in self.player.book.stages:
            units, seconds, disk = 0, 0.0, 0.0
            for name, condition in stage.conditions.items():
                chosen = self._chosen(stage, condition)
                if not chosen:
                    continue
                times = condition.intervention.draws if isinstance(condition.intervention, MatchedControl) else 1
                plain = self._plain(stage, name, condition, chosen)
                ratio = self._ratio(stage, name, condition, chosen, plain)
                units += times * len(chosen)
                seconds += times * ratio * sum(plain.seconds(len(s)) for s in chosen)
                disk += times * sum(plain.bytes(len(s)) for s in chosen)
                self.longest = max(self.longest, *map(len, chosen))
            if self.thorough:
                seconds += self._analyses(stage, units + sum(each.units for each in stages))
            at_most = stage.lengths == "solved" or any(map(_may_be_left_out, stage.conditions.values()))
            stages.append(StageEstimate(stage.name, units, at_most, seconds, int(disk)))
        report_seconds, report_bytes = self._report()
        host, device = self._peaks()
        return DryRun(
            units=sum(stage.units for stage in stages),
            peak_memory_bytes=host,
            peak_device_bytes=device,
            disk_bytes=sum(s.disk_bytes for s in stages) + report_bytes + _RECORD_BYTES,
            seconds=ready_seconds + self.calibration.once + sum(s.seconds for s in stages) + report_seconds,
            stages=stages,
            calibration_seconds=time.perf_counter() - began,
        )

    def _chosen(self, stage: Stage, condition: Condition) -> list[Sample]:
        samples = self.player.made(condition.workload)
        if not samples:
            raise UsageError("the workload makes no sample")
        return [s for s in samples if stage.half in ("both", s.facts["half"])]

    def _plain(self, stage: Stage, name: str, condition: Condition, chosen: Sequence[Sample]) -> _Plain:
        """Return what reading alone takes, with what this condition captures; tried with the first that needs it."""
        requests = plan.requests_of(stage, self.player.model) if condition.capture else []
        key = str(requests)
        if key not in self.plain:
            # Read as the condition itself where nothing is done to the model, so that analyses have it.
            own = condition.intervention is None
            played = Played(name if own else "calibration", condition.role if own else "other", condition.capture, {})
            samples = [s for workload in self._workloads(stage, requests) for s in self.player.made(workload)]

            def read(sample: Sample) -> Trial:
                return self._read(played, [sample], requests, stage.name, twice=True)[0]

            trials = spread(samples, read, until=self.calibration.until)
            self.plain[key] = _Plain(
                Curve.through([(t.length, t.seconds) for t in trials]),
                Curve.through([(t.length, t.bytes) for t in trials], degree=1),
                tuple(trials),
            )
            if own:
                self.ratios[stage.name, name] = 1.0
        return self.plain[key]

    def _workloads(self, stage: Stage, requests: Sequence[Any]) -> list[Any]:
        """Return the workloads that are read with the same capture, from this stage on."""
        return [
            condition.workload
            for each in self.player.book.stages[self.player.book.stages.index(stage) :]
            for condition in each.conditions.values()
            if (plan.requests_of(each, self.player.model) if condition.capture else []) == list(requests)
        ]

    def _ratio(self, stage: Stage, name: str, condition: Condition, chosen: Sequence[Sample], plain: _Plain) -> float:
        """Return how many times as long a condition takes as reading alone; 1 where nothing is known of it."""
        if isinstance(condition.intervention, MatchedControl):
            # The same done to as many heads.
            return self.ratios.get((stage.name, condition.intervention.matched_to), 1.0)
        if not self.thorough or self.calibration.over:
            return self.ratios.get((stage.name, name), self._usual(condition))
        try:
            alone = stage.model_copy(update={"conditions": {name: condition}})
            (played,) = plan.resolve(alone, self.findings, lambda *_: ())
            known = (stage.name, name) in self.ratios
            few, requests = self._few(chosen, plain), plan.requests_of(stage, self.player.model)
            trials = self._read(played, few, requests, stage.name, twice=len(few) == 1 and not known)
        except (ValueError, NotAvailable, ProbeError):
            # What it does rests on findings that these few prompts do not give.
            return self._usual(condition)
        if not known and trials:
            # The first reading under an intervention imports and compiles, which the run does once.
            ratio = max(0.2, min(t.seconds / max(plain.seconds(t.length), 1e-9) for t in trials))
            self.ratios[stage.name, name] = ratio
            if len(trials) > 1:
                self.calibration.once += max(0.0, trials[0].seconds - ratio * plain.seconds(trials[0].length))
        return self.ratios.get((stage.name, name), 1.0)

    def _usual(self, condition: Condition) -> float:
        """Return what interventions cost that were tried, in the middle; 1 where there is none or nothing is done."""
        known = sorted(self.ratios.values())
        return known[len(known) // 2] if known and condition.intervention is not None else 1.0

    def _few(self, chosen: Sequence[Sample], plain: _Plain) -> list[Sample]:
        """Return the longest sample that takes little, and the shortest; of each half where both are read."""
        few: list[Sample] = []
        for half in ("find", "test"):
            ordered = sorted((s for s in chosen if s.facts["half"] == half), key=len)
            fitting = [s for s in ordered if plain.seconds(len(s)) <= SHORT_SECONDS] or ordered[:1]
            few += fitting[-1:] + (fitting[:1] if fitting and len(fitting[0]) < 0.7 * len(fitting[-1]) else [])
        return few

    def _read(
        self, played: Played, samples: Sequence[Sample], requests: Sequence[Any], stage: str, *, twice: bool = False
    ) -> list[Trial]:
        trials = self.calibration.read(played, samples, requests, stage=stage, twice=twice)
        self.peak = max([self.peak, *(t.peak_bytes or 0 for t in trials)])
        return trials

    def _analyses(self, stage: Stage, num_units: int) -> float:
        """Return how long a stage's analyses take: once with all that is imported, then by the unit."""
        self._record()
        traces = list(Run(self.calibration.folder).traces())
        taken = 0.0
        for request in stage.analyses:
            name, parameters, label = labelled(request)
            analysis = discovery.get("analyses", name)
            times = []
            for some in (traces, traces, traces[::2]):
                began = time.perf_counter()
                try:
                    finding = analysis(some, **parameters)
                except ProbeError:
                    # Too few of what it compares: of no weight then in the whole either, as far as is known.
                    continue
                times.append(time.perf_counter() - began)
                if len(times) == 1:
                    named = finding if label == name else finding.model_copy(update={"name": label})
                    self.findings[label] = named
                    self.found.append(named)
            each = max(0.0, times[1] - times[2]) / (len(traces) - len(traces[::2])) if len(times) == 3 else 0.0
            taken += max(times, default=0.0) + each * max(0, num_units - len(traces))
        return taken

    def _record(self) -> None:
        player = self.player
        record = {
            "format": 1,
            "status": "complete",
            "identity": player.identity,
            "casebook": player.book.model_dump(mode="json"),
            "provenance": player.provenance,
            "model_card": player.model.card(),
            "stages": {},
        }
        write_record(self.calibration.folder, record)
        write_json(self.calibration.folder / "findings.json", [finding.to_json() for finding in self.found])

    def _report(self) -> tuple[float, int]:
        """Return how long the report takes, and the size of it and of the findings."""
        if not self.thorough:
            return 0.0, (files("plotly") / "package_data" / "plotly.min.js").stat().st_size  # type: ignore[attr-defined]
        self._record()
        folder, began = self.calibration.folder, time.perf_counter()
        write_report(Run(folder), folder / "report.html")
        written = sum((folder / name).stat().st_size for name in ("report.html", "findings.json"))
        return time.perf_counter() - began, written

    def _peaks(self) -> tuple[int, int | None]:
        """Return the most memory of the process, and of the GPU where there is one."""
        plain = list(self.plain.values())
        read = max(t.length for each in plain for t in each.trials)
        stored = max(each.bytes.b for each in plain)
        more = max(0, self._held(self.longest, stored) - self._held(read, stored))
        # What grows besides is not known of every model, and goes on as it was seen to.
        steepest = max((self._steepness(each.trials) for each in plain), default=0.0)
        more = max(more, int(steepest * max(0, self.longest - read)))
        if self.player.model.device.type == "cuda":
            return resident_peak() + int(stored * self.longest), self.peak + more
        return max(self.peak + more, resident_peak()), None

    def _steepness(self, trials: Sequence[Trial]) -> float:
        """Return the bytes by which the peak was seen to grow with each token, logits of a chunk left out."""
        first, last = trials[0], trials[-1]
        if first.length == last.length or not first.peak_bytes or not last.peak_bytes:
            return 0.0
        each = self.player.model.vocab_size * (self.player.model.dtype.itemsize + 4)
        logits = each * (min(last.length, capture.CHUNK_TOKENS) - min(first.length, capture.CHUNK_TOKENS))
        return max(0.0, (last.peak_bytes - first.peak_bytes - logits) / (last.length - first.length))

    def _held(self, length: int, stored: float) -> int:
        """Return the memory that grows with a prompt: its cache, its logits, its scores and what is kept of it."""
        model = self.player.model
        width = model.dtype.itemsize
        cache = sum(2 * kv * dim * length * width for kv, dim in zip(model.num_kv_heads, model.head_dim, strict=True))
        logits = min(length, capture.CHUNK_TOKENS) * model.vocab_size * (width + 4)
        heads = max(model.num_heads, default=0)
        scores = min(_SCAN_BYTES, 3 * 4 * heads * min(length, capture.CHUNK_TOKENS) * length)
        return int(cache + logits + scores + stored * length)


def _may_be_left_out(condition: Condition) -> bool:
    """Return whether a condition is played only where a finding suggests enough for it."""
    return any(isinstance(part, FromFinding) for part in parts_of(condition.intervention))


__all__ = ["DryRun", "StageEstimate", "estimate"]

"""Plays one casebook with one model into one folder: reads what is not there yet, and analyses what was read."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from probe import capture, discovery, plan
from probe.casebook import Casebook
from probe.costs import Costs
from probe.engines.engine import Engine, Job, Read
from probe.engines.local import local
from probe.engines.unit import Unit, UnitRead
from probe.engines.unit_reader import UnitReader
from probe.errors import RunFolderInUse, UsageError
from probe.expectation import judged
from probe.finding import Finding
from probe.limits import Limits
from probe.matched_sets import MatchedSets
from probe.plan import CannotPlay, Played
from probe.prepare import check_samples
from probe.private import withheld_sample
from probe.progress import Progress
from probe.reader import Reading
from probe.reporting.report import write_report
from probe.requested import all_requested, check_layers, check_private
from probe.run_identity import run_identity, unit_of
from probe.sample import Sample
from probe.stage import Stage, labelled
from probe.storage import store
from probe.storage.checking import SEALED
from probe.storage.durable import half_written
from probe.storage.hold import LOCK_FILE
from probe.storage.object_lease import LEASES
from probe.storage.object_path import Location
from probe.storage.run_folder import read_record
from probe.storage.seal import file_hashes, write_record
from probe.storage.trace_store import Run
from probe.success import RULES

if TYPE_CHECKING:
    from probe.hooks.models.huggingface import HuggingFaceModel

FORMAT = 1
"""Version of run.json's form."""


@dataclass
class Player:
    """Plays one casebook with one model into one folder."""

    book: Casebook
    model: HuggingFaceModel
    folder: Location
    progress: Progress
    command: str | None = None
    private: bool = False
    reading: Reading = field(default_factory=Reading)
    findings: dict[str, Finding] = field(default_factory=dict)
    failed: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    compared: dict[str, str] = field(default_factory=dict)
    given: Casebook | None = None
    """The casebook as it is written, before anything was set over it; its expectations are of that."""
    found: list[tuple[str, Finding]] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    engine: Engine = field(default_factory=local)
    began: float = field(default_factory=time.perf_counter)
    _workloads: dict[str, list[Sample]] = field(default_factory=dict)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What the model is and what runs it."""
        return self.model.provenance() | self.compared | {"seed": self.book.seed, "casebook": self.book.name}

    @cached_property
    def identity(self) -> dict[str, str]:
        """What must be the same for two runs to be one."""
        return run_identity(self.book, self.provenance, self.reading, private=self.private)

    @cached_property
    def costs(self) -> Costs:
        """What the run was predicted to take, and takes."""
        return Costs(self, self.began)

    @cached_property
    def _matched(self) -> MatchedSets:
        return MatchedSets(self.model, lambda: self.made({}), self.findings, self.book.seed)

    def compare(self, *, check: bool) -> None:
        """Hold the model's calls against its own eager attention; raises NotReproducible where they disagree."""
        stages = self.book.stages
        requests = all_requested([each for stage in stages for each in plan.requests_of(stage, self.model)])
        self.compared = capture.comparison(self.model, requests, check=check)

    def check(self) -> None:
        """Raise, before anything is written, what would else come up in the middle of the run.

        Every condition's prompts are made and held against the model's length, every layer that is named must be there,
        every named intervention is entered, and the shortest prompt goes through the model as it will be watched.
        """
        conditions = [condition for stage in self.book.stages for condition in stage.conditions.values()]
        samples = [sample for condition in conditions for sample in self.made(condition.workload)]
        if not samples:
            raise UsageError(f"the workload {self.book.workload_name!r} makes no sample")
        for stage in self.book.stages:
            requests = all_requested(plan.requests_of(stage, self.model))
            check_layers(requests, self.model)
            if self.private:
                check_private(requests)
        for stage in self.book.stages:
            for name, condition in stage.conditions.items():
                for intervention in plan.stated(condition):
                    self._check(name, intervention, self.made(condition.workload))
        if any(condition.capture for condition in conditions):
            shortest = min(samples, key=len)
            with self.model.calls(lambda *_: None):
                self.model.step(self.model.prefill(shortest.tokens[:-1]), shortest.tokens[-1:])

    def _check(self, name: str, intervention: Any, samples: Sequence[Sample]) -> None:
        """Raise UsageError naming the condition and the field where its intervention does not apply to what is read."""
        try:
            for sample in samples:
                intervention.check(self.model, sample)
            with intervention(self.model):
                pass
        except UsageError as error:
            raise CannotPlay(f"condition {name!r}: {error}") from error

    def judge(self, *, force: bool) -> bool:
        """Return whether another run in the folder is to be replaced; raises RunFolderInUse where it may not be.

        Nothing is written: a folder that is somebody else's stays as it is.
        """
        before = read_record(self.folder)
        if before is not None:
            known = before["identity"]
            differ = (key for key in {*known, *self.identity} if known.get(key) != self.identity.get(key))
            changed = sorted("scan" if key == "engine" else key for key in differ)
            if changed and not force:
                raise RunFolderInUse(
                    f"{self.folder} holds another run, which differs in {', '.join(changed)}; "
                    "give another folder with --out, or --force to replace it"
                )
            return force
        there: list[Location] = list(self.folder.iterdir()) if self.folder.is_dir() else []
        if any(path.name not in (LOCK_FILE, LEASES) and not half_written(path) for path in there):
            raise RunFolderInUse(f"{self.folder} is not empty and holds no run; give another folder with --out")
        return False

    def claim(self, *, force: bool) -> None:
        """Make the folder, which is held, this run's: new, continued, or cleared of another run."""
        if self.judge(force=force):
            store.clear(self.folder)
        there: list[Location] = list(self.folder.iterdir())
        for path in there:
            if half_written(path):
                path.unlink()
        self._record("running")

    def play(self) -> None:
        """Play every stage, then write findings and report."""
        status = "stopped"
        with store.RunStore(self.folder) as self.store:
            reader = UnitReader(self.model, self.provenance, self.reading, self.private)
            job = Job(reader, self.store, self.folder, self.limits, self.progress)
            try:
                with self.engine.at_work(job) as read:
                    for stage in self.book.stages:
                        self._play_stage(stage, read)
                        self._analyse(stage)
                status = "partial" if self.failed else "complete"
            finally:
                self._record(status)
                self.costs.write()
        write_report(Run(self.folder), self.folder / "report.html")
        self._record(status)
        self.costs.write()

    def _play_stage(self, stage: Stage, read: Read) -> None:
        try:
            played = plan.resolve(stage, self.findings, self._matched.draw)
            work = {i: self._samples(stage, p) for i, p in enumerate(played)}
            if not any(work.values()):
                which = f"{stage.half} half of the samples" if stage.half != "both" else "lengths that it reads"
                raise CannotPlay(f"there is no sample in the {which}; two samples a cell (--limit 2) give both halves")
            for i, condition in enumerate(played):
                if plan.from_findings(stage.conditions[condition.name]):
                    self._check(condition.name, plan.intervention_of(condition), work[i])
        except CannotPlay as reason:
            self.stages[stage.name] = {"skipped": str(reason)}
            self.progress.message(f"stage {stage.name}: not played: {reason}")
            self._take_out(stage, set())
            return
        planned = sum(len(samples) for samples in work.values())
        self.stages[stage.name] = {"num_units": planned, "conditions": [{"name": p.name, **p.facts()} for p in played]}
        if left_out := [name for name in stage.conditions if name not in {p.name for p in played}]:
            self.stages[stage.name]["left_out"] = left_out
            self.progress.message(f"stage {stage.name}: {', '.join(left_out)}: fewer heads were suggested; left out")
        self._record("running")
        units = self._units(stage, played, work)
        self._take_out(stage, {unit.id for unit in units})
        committed = self.store.committed()
        self.progress.start(planned)
        pending = []
        for unit in units:
            if unit.id not in committed:
                pending.append(unit)
                continue
            if why := committed[unit.id]["failed"]:
                self._note_failure(unit, why)
            self.progress.advance(f"{unit.condition.name} {unit.sample.name}: there already")
        with contextlib.closing(read(pending)) as finished:
            for unit, came in finished:
                self._came(unit, came)

    def _units(self, stage: Stage, played: Sequence[Played], work: Mapping[int, Sequence[Sample]]) -> list[Unit]:
        """Return the units of a stage, in the casebook's order."""
        requests, number = plan.requests_of(stage, self.model), self.book.stages.index(stage)
        return [
            Unit(
                unit_of(self.identity, stage.name, condition, sample, requests, private=self.private),
                (number, place),
                stage.name,
                condition,
                sample,
                tuple(requests) if condition.capture else (),
            )
            for place, (condition, sample) in enumerate((p, s) for i, p in enumerate(played) for s in work[i])
        ]

    def _take_out(self, stage: Stage, planned: set[str]) -> None:
        """Take out what this stage read when an earlier finding was another one, so that nothing of it is mixed in."""
        stale = [u for u, r in self.store.committed().items() if r.get("stage") == stage.name and u not in planned]
        if stale:
            self.progress.message(f"stage {stage.name}: {len(stale)} units were read for other findings; taken out")
            self.store.forget(stale)

    def _came(self, unit: Unit, came: UnitRead) -> None:
        """Take note of what came of a unit."""
        self.costs.add(came)
        if came.record is not None:
            self.limits.add(self.folder / "trace.zarr" / unit.id)
        if came.non_finite:
            self.progress.message(f"{unit.condition.name} {unit.sample.name}: {came.non_finite}")
        by = f" ({came.by})" if came.by else ""
        if came.failed:
            self._note_failure(unit, came.failed)
            self.progress.advance(f"{unit.condition.name} {unit.sample.name}: failed{by}")
        else:
            self.progress.advance(f"{unit.condition.name} {unit.sample.name}{by}")

    def _note_failure(self, unit: Unit, why: str) -> None:
        name = withheld_sample(unit.sample).name if self.private else unit.sample.name
        self.failed[unit.place] = {"unit": unit.id, "condition": unit.condition.name, "sample": name, "why": why}
        self.progress.message(f"{unit.condition.name} {name} failed: {why}")

    def _samples(self, stage: Stage, played: Played) -> list[Sample]:
        solved = None
        lengths = [each.measured.value for _, each in self.found if each.analysis == "effective_length"]
        if lengths and lengths[-1] is not None:
            solved = int(lengths[-1])
        return plan.chosen(stage, self.made(played.workload), solved)

    def made(self, replaced: Mapping[str, Any]) -> list[Sample]:
        """Make a condition's samples once, and hold their lengths against the model's."""
        key = json.dumps(replaced, sort_keys=True)
        if key in self._workloads:
            return self._workloads[key]
        samples = list(plan.halved(self.book.build_workload(replaced).build(self.model.tokenizer)))
        if (said := check_samples(samples, self.model)) and not self._workloads:
            self.progress.message(said)
        self._workloads[key] = samples
        return samples

    def _analyse(self, stage: Stage) -> None:
        traces = Run(self.folder)
        self.costs.note()
        for request in stage.analyses:
            name, parameters, label = labelled(request)
            if self.private and discovery.get("analyses", name).reads_tokens:
                why = f"{name} compares token ids, which a private run leaves out"
                self.stages[stage.name].setdefault("not_analysed", {})[name] = why
                self.progress.message(f"stage {stage.name}: {why}")
                continue
            finding = discovery.get("analyses", name)(traces, **parameters)
            self.findings[label] = finding if label == name else finding.model_copy(update={"name": label})
            self.found.append((stage.name, self.findings[label]))
        store.write_json(self.folder / "findings.json", [finding.to_json() for _, finding in self.found])
        self.costs.note()

    def _expected(self) -> dict[str, Any]:
        """Return what became of the casebook's expectations, and in what this run differs from what they are of."""
        given, book = self.given or self.book, self.book
        reasons = [f"stage {name} was not played: {s['skipped']}" for name, s in self.stages.items() if "skipped" in s]
        reasons += [why for facts in self.stages.values() for why in facts.get("not_analysed", {}).values()]
        return {
            "of": given.model,
            "differs_in": [key for key in ("model", "seed", "workload") if getattr(given, key) != getattr(book, key)],
            "results": judged(book.expect, self.found, reasons),
        }

    def _record(self, status: str) -> None:
        ended = status not in ("running", "stopped")
        write_record(
            self.folder,
            {
                "format": FORMAT,
                "status": status,
                "identity": self.identity,
                "casebook": self.book.model_dump(mode="json"),
                "provenance": self.provenance,
                "model_card": self.model.card(),
                "command": self.command,
                "engine": self.engine.to_json(),
                "success_rules": sorted({RULES[s.success_rule] for made in self._workloads.values() for s in made}),
                "stages": self.stages,
                "failed": [each for _, each in sorted(self.failed.items())],
                **({"expected": self._expected()} if self.book.expect and ended else {}),
                **({"files": file_hashes(self.folder, SEALED)} if ended else {}),
            },
        )

"""A casebook: an experiment as a YAML file, read strictly, with its overrides."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError, model_validator

from probe import discovery, strict_yaml
from probe.errors import CasebookError, UsageError
from probe.expectation import Expectation
from probe.stage import Condition, FromFinding, MatchedControl, Stage, Strict, labelled, named, parts_of, unknown_name
from probe.strict_yaml import Document

FORMAT = 1
"""Version of the casebook's form."""

PUBLISHED = "published/"
"""What stands before the name of a casebook that checks a published figure."""


class PublishedFigure(Strict):
    """A figure that somebody published and that a casebook checks, with what is known of it."""

    figure: str = Field(description="The figure, in words.")
    source: str = Field(description="Paper, and where in it or in its authors' repository.")
    verified: str = Field(
        description="Where the figure was read: authors' data, authors' code, the paper's text, or second hand."
    )
    differs: str = Field(description="In what the casebook differs from what the figure was measured on.")
    state: str = Field(default="not run here", description="`not run here`, or who ran it, when, and what came out.")


class Casebook(Strict):
    """One experiment: a model, a workload, and stages of conditions with their analyses."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,60}$")
    question: str = Field(description="What the casebook answers, in one sentence.")
    model: str = Field(default="needle", description="Specimen name, hub id or folder.")
    seed: int = Field(default=0, ge=0, description="Seed of everything drawn.")
    published: PublishedFigure | None = Field(
        default=None, description="The published figure that the casebook checks, where it checks one."
    )
    workload: dict[str, dict[str, JsonValue]] = Field(
        description="One workload by name, with its fields.", min_length=1, max_length=1
    )
    stages: tuple[Stage, ...] = Field(min_length=1)
    expect: tuple[Expectation, ...] = Field(
        default=(), description="What the casebook shows on its own model and workload; `probe run --check` holds it."
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {**value, **{k: tuple(value[k]) for k in ("stages", "expect") if isinstance(value.get(k), list)}}

    @property
    def workload_name(self) -> str:
        """Name of the workload."""
        return next(iter(self.workload))

    def build_workload(self, replaced: Mapping[str, Any] | None = None) -> Any:
        """Return the workload with its fields, `replaced` over them; raises UsageError naming a bad field."""
        name = self.workload_name
        # The casebook's seed draws the prompts too, unless the workload names one of its own.
        drawn = {"seed": self.seed} if "seed" in {f.name for f in fields(discovery.get("workloads", name))} else {}
        return build("workloads", name, {**drawn, **self.workload[name], **(replaced or {})})


@dataclass(frozen=True)
class Override:
    """Fields that the command line or a caller sets over a casebook's."""

    model: str | None = None
    seed: int | None = None
    lengths: tuple[int, ...] | None = None
    depths: tuple[float, ...] | None = None
    samples: int | None = None
    """Samples per cell (`--limit`): never more than the casebook's."""
    haystack: str | None = None

    def apply(self, casebook: Casebook) -> Casebook:
        """Return the casebook with these fields; raises UsageError where the workload has no such field."""
        name = casebook.workload_name
        workload = dict(casebook.workload[name])
        known = {f.name for f in fields(discovery.get("workloads", name))}
        for key in ("lengths", "depths", "samples", "haystack"):
            value = getattr(self, key)
            if value is None:
                continue
            if key == "haystack" and key not in known and "text" in known:
                # A workload that hides nothing has a text of its own in its place.
                key = "text"
            if key not in known:
                raise UsageError(f"the workload {name!r} has no field {key!r}")
            if key == "samples" and isinstance(workload.get(key), int):
                value = min(value, workload[key])
            workload[key] = list(value) if isinstance(value, tuple) else value
        update: dict[str, Any] = {"workload": {name: workload}}
        if self.model is not None:
            update["model"] = self.model
        if self.seed is not None:
            update["seed"] = self.seed
        if self.samples is not None:
            update["stages"] = tuple(_of_at_most(stage, self.samples) for stage in casebook.stages)
        try:
            changed = Casebook.model_validate_json(casebook.model_copy(update=update).model_dump_json())
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise UsageError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
        changed.build_workload()
        return changed


def _of_at_most(stage: Stage, samples: int) -> Stage:
    """Return a stage whose conditions that say how many samples they read say no more than these."""
    conditions = dict(stage.conditions)
    for name, condition in stage.conditions.items():
        if isinstance(own := condition.workload.get("samples"), int):
            workload = {**condition.workload, "samples": min(own, samples)}
            conditions[name] = condition.model_copy(update={"workload": workload})
    return stage.model_copy(update={"conditions": conditions})


def load(casebook: str | Path) -> Casebook:
    """Read a casebook by name (one that ships, or a plugin's) or path; CasebookError with file, line and column."""
    path = find(casebook)
    with path.open("rb") as file:
        text = file.read(strict_yaml.MAX_BYTES + 1)
    return check(strict_yaml.parse(text, str(casebook) if Path(str(casebook)) == path else path.name))


def find(casebook: str | Path) -> Path:
    """Return the file of a casebook (`NAME`, `published/NAME` or a path); UsageError names those that ship."""
    path = Path(casebook)
    with contextlib.suppress(OSError):
        if path.is_file():
            return path
    published = {f"{PUBLISHED}{name}": path for name, path in discovery.modules("published").items()}
    shipped = discovery.modules("casebooks") | published
    if str(casebook) in shipped:
        room, name = ("published", path.name) if str(casebook) in published else ("casebooks", str(casebook))
        return Path(discovery.get(room, name))
    close = difflib.get_close_matches(str(casebook), shipped, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {sorted(shipped)}, or give a file"
    raise UsageError(f"no casebook {str(casebook)!r}: {hint}")


def check(document: Document) -> Casebook:
    """Turn a parsed text into a casebook; raises CasebookError with file, line, column and what was expected."""
    try:
        casebook = Casebook.model_validate(document.value)
    except ValidationError as error:
        raise _pointed(document, error) from None
    name = casebook.workload_name
    _known(document, ("workload", name), "workloads", name)
    _build(document, ("workload", name), "workloads", name, casebook.workload[name])
    # How often a stage gives a finding of that name; a later stage's is the one that is meant.
    seen: dict[str, int] = {}
    for i, stage in enumerate(casebook.stages):
        where: strict_yaml.Path = ("stages", i)
        if stage.name in {s.name for s in casebook.stages[:i]}:
            raise document.error((*where, "name"), f"two stages are named {stage.name!r}")
        for label, condition in stage.conditions.items():
            _check_condition(document, (*where, "conditions", label), casebook, stage, condition, seen)
        listed = isinstance(document.value["stages"][i].get("capture"), list)
        for j, request in enumerate(stage.capture):
            _check_statistic(document, (*where, "capture", j) if listed else (*where, "capture"), request)
        labels = [
            _check_analysis(document, (*where, "analyses", j), request, seen, casebook.stages[: i + 1])
            for j, request in enumerate(stage.analyses)
        ]
        for j, label in enumerate(labels):
            if label in labels[:j] and label != labelled(stage.analyses[j])[0]:
                raise document.error((*where, "analyses", j, "as"), f"two findings are called {label!r}")
        seen |= Counter(labels)
    for i, expectation in enumerate(casebook.expect):
        _check_expectation(document, ("expect", i), expectation, casebook)
    return casebook


def _check_expectation(
    document: Document, path: strict_yaml.Path, expectation: Expectation, casebook: Casebook
) -> None:
    """Raise where an expectation is of an analysis or a stage that the casebook has not, or could be of two."""
    asked = [(stage.name, *labelled(each)) for stage in casebook.stages for each in stage.analyses]
    places = [(stage, name) for stage, analysis, _, label in asked for name in dict.fromkeys((analysis, label))]
    names, stages = {name for _, name in places}, [stage.name for stage in casebook.stages]
    if expectation.analysis not in names:
        raise document.error(
            (*path, "analysis"), f"no stage runs the analysis {expectation.analysis!r}; those are {sorted(names)}"
        )
    if expectation.stage is not None and expectation.stage not in stages:
        raise document.error((*path, "stage"), f"there is no stage {expectation.stage!r}; there are {stages}")
    fit = [s for s, name in places if name == expectation.analysis and expectation.stage in (None, s)]
    if not fit:
        raise document.error(
            (*path, "stage"), f"the stage {expectation.stage!r} does not run the analysis {expectation.analysis!r}"
        )
    if len(fit) > 1:
        twice = f"runs twice in {fit[0]!r}; say which by its name (`as`)"
        hint = f"stands in the stages {fit}; say which with `stage`" if len({*fit}) > 1 else twice
        raise document.error((*path, "analysis"), f"{expectation.analysis!r} {hint}")


def _check_statistic(document: Document, path: strict_yaml.Path, request: JsonValue) -> None:
    name, _ = _named(document, path, request)
    _known(document, (*path, name) if (*path, name) in document.places else path, "kernels", name)
    # Here rather than at the top: reading a casebook that captures nothing of its own needs no torch.
    from probe.requested import requested

    try:
        requested(request)
    except UsageError as error:
        raise document.error((*path, name), str(error)) from None


def _check_analysis(
    document: Document, path: strict_yaml.Path, request: JsonValue, seen: Mapping[str, int], stages: Sequence[Stage]
) -> str:
    """Return what the finding is called, its parameters known, of their types, and accepted by the analysis itself."""
    try:
        name, parameters, label = labelled(request)
    except UsageError as error:
        raise document.error(path, str(error)) from None
    if label != name and (label in seen or label in discovery.names("analyses")):
        taken = "an earlier finding is called that" if label in seen else "an analysis is called that"
        raise document.error((*path, "as"), f"{label!r} is no name of its own: {taken}")
    _known(document, path, "analyses", name)
    analysis = discovery.get("analyses", name)
    allowed = list(inspect.signature(analysis).parameters)[1:]
    # What an analysis reads is named for type checkers alone; here its parameters matter.
    hints = get_type_hints(analysis, localns={"Run": Any, "Trace": Any})
    for key, value in parameters.items():
        where = (*path, name, key)
        if key not in allowed:
            raise document.error(where, f"{name} has no parameter {key!r}; it has {allowed}")
        try:
            TypeAdapter(hints[key]).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            raise _pointed(document, error, where) from None
        if unknown := unknown_name(key, value, stages):
            raise document.error(where, unknown)
    try:
        analysis([], **parameters)
    except UsageError as error:
        raise document.error((*path, name), str(error)) from None
    return label


def build(room: str, name: str, values: Mapping[str, Any]) -> Any:
    """Build a room's dataclass from JSON values, converted and checked; UsageError names the field."""
    document = Document(dict(values), name)
    return _build(document, (), room, name, values)


def _build(document: Document, path: strict_yaml.Path, room: str, name: str, values: Mapping[str, Any]) -> Any:
    kind = discovery.get(room, name)
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            raise document.error((*path, key), f"{name} has no field {key!r}; it has {known}")
    try:
        # As JSON, where a list stands for a tuple and nothing else is taken for what it is not.
        return TypeAdapter(kind).validate_json(json.dumps(dict(values)), strict=True)
    except ValidationError as error:
        raise _pointed(document, error, path) from None
    except UsageError as error:
        raise document.error(path, str(error)) from None


def _check_condition(
    document: Document,
    path: strict_yaml.Path,
    casebook: Casebook,
    stage: Stage,
    condition: Condition,
    findings: Mapping[str, int],
) -> None:
    name = casebook.workload_name
    if condition.workload:
        merged = {**casebook.workload[name], **condition.workload}
        _build(document, (*path, "workload"), "workloads", name, merged)
    intervention, at = condition.intervention, (*path, "intervention")
    if isinstance(intervention, MatchedControl):
        if intervention.matched_to not in stage.conditions:
            raise document.error(
                (*at, "matched_to"),
                f"this stage has no condition {intervention.matched_to!r}; it has {sorted(stage.conditions)}",
            )
        if isinstance(stage.conditions[intervention.matched_to].intervention, MatchedControl | list | None):
            raise document.error(
                (*at, "matched_to"), f"{intervention.matched_to!r} names no heads of its own to be matched"
            )
    several = isinstance(intervention, list)
    stated = [
        _check_part(document, (*at, i) if several else at, part, findings)
        for i, part in enumerate(parts_of(intervention))
    ]
    for i, one in enumerate(stated):
        for other in stated[:i]:
            if one is not None and other is not None:
                try:
                    other.check_beside(one)
                except UsageError as error:
                    raise document.error((*at, i), str(error)) from None


def _check_part(
    document: Document,
    path: strict_yaml.Path,
    part: FromFinding | dict[str, dict[str, JsonValue]],
    findings: Mapping[str, int],
) -> Any:
    """Return an intervention that the casebook states itself, built; None where a finding will."""
    if isinstance(part, FromFinding):
        if part.from_finding not in findings:
            raise document.error(
                (*path, "from_finding"),
                f"no earlier stage runs the analysis {part.from_finding!r}; those are {sorted(findings)}",
            )
        if findings[part.from_finding] > 1:
            raise document.error(
                (*path, "from_finding"), f"{part.from_finding!r} gives several findings; name the one meant with `as`"
            )
        if part.plays is not None:
            _known(document, (*path, "plays"), "hooks", part.plays)
            _build(document, path, "hooks", part.plays, {"heads": [[0, 0]], **part.fields})
        return None
    if len(part) != 1:
        raise document.error(path, "expected one intervention, by name; several are a list, in their order")
    kind, values = next(iter(part.items()))
    if kind == "together":
        raise document.error((*path, kind), "several interventions are a list, in their order")
    _known(document, (*path, kind), "hooks", kind)
    return _build(document, (*path, kind), "hooks", kind, values)


def _named(document: Document, path: strict_yaml.Path, request: JsonValue) -> tuple[str, dict[str, Any]]:
    try:
        return named(request)
    except UsageError as error:
        raise document.error(path, str(error)) from None


def _known(document: Document, path: strict_yaml.Path, room: str, name: str) -> None:
    names = discovery.names(room)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {sorted(names)}"
        raise document.error(path, f"unknown {discovery.ROOMS[room]} {name!r}: {hint}")


def _pointed(document: Document, error: ValidationError, prefix: strict_yaml.Path = ()) -> CasebookError:
    """Turn pydantic's first complaint into one that names file, line and column."""
    problems = error.errors(include_url=False)
    # An unknown key is most often the cause of what else is missing.
    first = max(problems, key=lambda problem: (problem["type"] == "extra_forbidden", len(problem["loc"])))
    location = first["loc"]
    path: strict_yaml.Path = prefix
    for part in location:
        if (*path, part) in document.places or part == location[-1]:
            path = (*path, part)
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key{_expected(path)}"
    elif "input" in first and not isinstance(first["input"], dict | list | tuple):
        message = f"{message}, got {first['input']!r}"
    return document.error(path, message)


def _expected(path: strict_yaml.Path) -> str:
    """Say which keys would have been right beside the last of `path`."""
    kind: type[BaseModel] = Casebook
    if len(path) >= 3 and path[0] == "stages":
        kind = Condition if len(path) >= 5 and path[2] == "conditions" else Stage
    elif len(path) >= 3 and path[0] == "expect":
        kind = Expectation
    elif len(path) == 2 and path[0] == "published":
        kind = PublishedFigure
    keys = list(kind.model_fields)
    close = difflib.get_close_matches(str(path[-1]), keys, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {keys}"

"""From a casebook's stage to the units that are read: conditions resolved, samples chosen, controls drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probe import discovery
from probe.analysis import needed_one_by_one
from probe.casebook import build
from probe.errors import UsageError
from probe.finding import Finding
from probe.sample import Sample
from probe.stage import Condition, FromFinding, MatchedControl, Named, Stage, labelled, named, parts_of

Heads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Played:
    """A condition with everything resolved: what a unit of it does."""

    name: str
    """Name of the condition in the casebook."""
    role: str
    """What part it plays in the analyses."""
    capture: bool
    """Whether attention is captured."""
    workload: Mapping[str, Any]
    """Workload fields replaced."""
    intervention: Mapping[str, Mapping[str, Any]] | None = None
    """The intervention by name with its fields, heads and all, as JSON values; several are `together`."""
    draw: int | None = None
    """Which draw of a random control this is."""
    matched_to: str | None = None
    """The condition whose heads this control's are matched to."""
    norm_ratio: float | None = None
    """Mean output norm of this control's heads over that of the heads that they are matched to."""

    def facts(self) -> dict[str, Any]:
        """Return what a trace says of its condition."""
        return {
            "role": self.role,
            "workload": dict(self.workload),
            "intervention": self.intervention,
            "draw": self.draw,
            "matched_to": self.matched_to,
            "norm_ratio": self.norm_ratio,
        }


class CannotPlay(UsageError):
    """A stage's condition rests on a finding that found nothing; the message says which."""


def halved(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Mark each sample as one to find with or one to test with, by the parity of its seed."""
    for sample in samples:
        half = "test" if int(sample.facts.get("seed", 0)) % 2 else "find"
        yield dataclasses.replace(sample, facts={**sample.facts, "half": half})


def chosen(stage: Stage, samples: Sequence[Sample], solved: int | None) -> list[Sample]:
    """Return the samples that a stage reads; `solved` is the effective length found, if any."""
    kept = [s for s in samples if stage.half in ("both", s.facts["half"])]
    if stage.lengths == "solved":
        if not solved:
            raise CannotPlay("it reads the lengths that the model solves, and it solves none")
        kept = [s for s in kept if int(s.facts["length"]) <= solved]
    return kept


def resolve(
    stage: Stage,
    findings: Mapping[str, Finding],
    draw_matched: Callable[[Heads, int], Sequence[tuple[Heads, float]]],
) -> list[Played]:
    """Resolve a stage's conditions in the casebook's order; raises CannotPlay naming what is missing.

    A condition of more heads than were suggested (`top`) is not among them, nor what is matched to it.

    `draw_matched(heads, draws)` gives the random control's sets of heads, each with its norm ratio.
    """
    resolved: dict[str, list[Played]] = {}
    pending = dict(stage.conditions)
    while pending:
        ready = [name for name, c in pending.items() if _needs(c) not in pending]
        if not ready:
            raise UsageError(f"stage {stage.name!r}: conditions match one another in a circle: {sorted(pending)}")
        for name in ready:
            resolved[name] = _resolve(name, pending.pop(name), findings, resolved, draw_matched)
    return [played for name in stage.conditions for played in resolved[name]]


def _needs(condition: Condition) -> str | None:
    intervention = condition.intervention
    return intervention.matched_to if isinstance(intervention, MatchedControl) else None


def _resolve(
    name: str,
    condition: Condition,
    findings: Mapping[str, Finding],
    resolved: Mapping[str, list[Played]],
    draw_matched: Callable[[Heads, int], Sequence[tuple[Heads, float]]],
) -> list[Played]:
    plain = Played(name, condition.role, condition.capture, condition.workload)
    intervention = condition.intervention
    if intervention is None:
        return [plain]
    if isinstance(intervention, MatchedControl):
        if not resolved[intervention.matched_to]:
            return []
        matched = resolved[intervention.matched_to][0]
        if not matched.intervention:
            raise UsageError(f"{name!r} is matched to {matched.name!r}, which has no intervention")
        kind, fields = next(iter(matched.intervention.items()))
        pairs: Any = fields.get("heads")
        if pairs is None:
            raise UsageError(f"{name!r} is matched to {matched.name!r}, whose {kind} names no heads")
        heads = tuple((int(layer), int(head)) for layer, head in pairs)
        return [
            dataclasses.replace(
                plain,
                intervention={kind: {**fields, "heads": [list(pair) for pair in drawn]}},
                draw=i,
                matched_to=matched.name,
                norm_ratio=ratio,
            )
            for i, (drawn, ratio) in enumerate(draw_matched(heads, intervention.draws))
        ]
    parts = [_part(name, part, findings) for part in parts_of(intervention)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return []
    # What a finding suggests may be several itself.
    flat = [each for part in known for each in part.get("together", {}).get("interventions", [dict(part)])]
    whole = flat[0] if len(flat) == 1 else {"together": {"interventions": flat}}
    if from_findings(condition):
        try:
            built(whole)
        except UsageError as error:
            own = sorted(
                field for part in parts_of(intervention) if isinstance(part, FromFinding) for field in part.fields
            )
            if own:
                # What a finding suggests can be played: it is what the casebook says beside it that cannot be.
                said = f"condition {name!r}, its fields {', '.join(own)}: {error}"
                raise UsageError(said) from error
            raise CannotPlay(f"condition {name!r}: {error}") from error
    return [dataclasses.replace(plain, intervention=whole)]


def _part(
    name: str, part: FromFinding | Named, findings: Mapping[str, Finding]
) -> Mapping[str, Mapping[str, Any]] | None:
    """Return an intervention by name with its fields; None where fewer heads were suggested than it plays."""
    if not isinstance(part, FromFinding):
        return part
    finding = findings.get(part.from_finding)
    if finding is None or not finding.suggests:
        raise CannotPlay(f"{name!r} plays what {part.from_finding!r} suggests, and it suggested nothing")
    suggestion = finding.suggests[0]
    values, kind = {**suggestion.fields, **part.fields}, suggestion.intervention
    heads: Any = values.get("heads")
    if heads is None and (part.top is not None or part.plays is not None):
        asked = part.plays if part.top is None else f"the top {part.top}"
        raise UsageError(f"{name!r} plays {asked}, and {kind} names no heads")
    if part.plays is not None:
        values, kind = {"heads": heads, **part.fields}, part.plays
    if part.top is not None:
        if len(heads) < part.top:
            return None
        values["heads"] = heads[: part.top]
    return {kind: values}


def requests_of(stage: Stage, model: Any = None) -> list[dict[str, Any]]:
    """Return the statistics that a stage captures: what its analyses need, and what it asks for besides.

    Where no layer of the model attends, an analysis that can do without attention gets none; where no layer recurs, one
    about recurrence gets none. Without a model, all are given.
    """
    attends = model is None or bool(model.attention_layers)
    recurs = model is None or bool(getattr(model, "recurrent_layers", None))
    requests: dict[str, dict[str, Any]] = {}
    for request in stage.analyses:
        name, parameters, _ = labelled(request)
        asked = discovery.get("analyses", name)
        if (asked.does_without_attention and not attends) or (asked.about_recurrence and not recurs):
            continue
        for statistic, needed in needed_one_by_one(asked.needs(**parameters)):
            requests[f"{statistic} {sorted(needed.items())}"] = {statistic: needed}
    for request in stage.capture:
        statistic, extra = named(request)
        requests[f"{statistic} {sorted(extra.items())}"] = {statistic: extra}
    return list(requests.values())


def intervention_of(played: Played) -> Any | None:
    """Build the intervention of a resolved condition, or None."""
    return built(played.intervention) if played.intervention else None


def built(intervention: Mapping[str, Mapping[str, Any]]) -> Any:
    """Build an intervention from its name and fields, each of several strictly; UsageError names the field."""
    kind, values = next(iter(intervention.items()))
    if kind == "together":
        if other := sorted({*values} - {"interventions"}):
            raise UsageError(f"several interventions have no field {', '.join(other)} in common")
        return discovery.get("hooks", kind)([built(part) for part in values["interventions"]])
    return build("hooks", kind, values)


def stated(condition: Condition) -> list[Any]:
    """Return the interventions that a condition states itself, built; what a finding will name is not among them."""
    own = [part for part in parts_of(condition.intervention) if not isinstance(part, FromFinding)]
    if len(own) > 1:
        return [built({"together": {"interventions": own}})]
    return [built(part) for part in own]


def from_findings(condition: Condition) -> bool:
    """Return whether a finding says what a condition does."""
    return any(isinstance(part, FromFinding) for part in parts_of(condition.intervention))

"""The same prompts under every condition and under none: what `compare_conditions` and `choose_condition` read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import UsageError
from probe.selection import LeftOut, answered, depth, finite, interventions_of, length, role, selected, traces_of

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.storage.trace_store import Run, Trace


@dataclass(frozen=True)
class PromptReading:
    """One prompt under one condition, averaged over the condition's draws; NaN where it was not measured."""

    prompt: str
    length: int
    depth: float | None
    tokens: Any
    """The prompt's token ids, to tell whether a condition rewrote it."""
    accuracy: float
    """In percent; NaN where nothing was asked."""
    answer_loss: float
    text_loss: float
    seconds: float
    peak_bytes: float
    captured: bool
    """Whether attention was captured, which takes time and memory of its own."""
    traces: tuple[Trace, ...]

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(trace.unit for trace in self.traces)


@dataclass(frozen=True)
class ConditionReading:
    """Every prompt that a condition of a stage read."""

    name: str
    """The condition's; with its stage before it where several stages have one of that name and none was asked for."""
    condition: str
    stage: str
    role: str
    intervention: Mapping[str, Any] | None
    workload: str
    """What the condition replaces in the workload, as JSON: prompts are the same where this is."""
    num_draws: int
    """Random draws of a control; 1 where nothing was drawn."""
    prompts: Mapping[str, PromptReading]

    @property
    def how(self) -> str:
        """The intervention with all its fields, in words."""
        named = interventions_of({"intervention": self.intervention})
        return ", then ".join(f"{name} ({_fields(fields)})" if fields else name for name, fields in named)

    @property
    def asked(self) -> bool:
        """Whether any of its prompts asks something."""
        return any(np.isfinite(each.accuracy) for each in self.prompts.values())


def read_conditions(
    run: Run | Trace | Iterable[Trace],
    left_out: LeftOut,
    *,
    half: str | None = None,
    stage: str | None = None,
) -> list[ConditionReading]:
    """Return every condition of every stage, by stage and name; units that failed (of one stage) are counted by name.

    A stage of which there is no trace is named among what is left out.
    """
    groups: dict[tuple[str, str], list[Trace]] = {}
    for trace in traces_of(run):
        groups.setdefault((trace.stage, trace.condition), []).append(trace)
    stages = sorted({at for at, _ in groups})
    if stage is not None and groups and stage not in stages:
        # A casebook's stage may not have been played, which is no mistake of the casebook's.
        left_out.add(f"no stage {stage!r}; there are {', '.join(stages)}")
        return []
    readings = []
    for (at, condition), traces in sorted(groups.items()):
        own = LeftOut()
        chosen = selected(traces, role=None, half=half)
        if not chosen:
            continue
        first = min(chosen, key=lambda trace: trace.unit)
        # A condition is captured or it is not: one of its traces tells, and opening them all takes long.
        captured = len(first.dataset.data_vars) > 0
        by_prompt: dict[str, list[tuple[Trace, Outcome]]] = {}
        for trace, outcome in (*answered(chosen, own), *_without_question(chosen)):
            by_prompt.setdefault(trace.sample.name, []).append((trace, outcome))
        shared = at != stage and sum(other == condition for _, other in groups) > 1
        for reason, number in own.reasons.items():
            if reason != "nothing was asked" and stage in (None, at):
                left_out.add(f"{condition}: {reason}", number)
        readings.append(
            ConditionReading(
                name=f"{at}/{condition}" if shared else condition,
                condition=condition,
                stage=at,
                role=role(first),
                intervention=first.facts.get("intervention") or None,
                workload=json.dumps(first.facts.get("workload") or {}, sort_keys=True),
                num_draws=len({trace.facts.get("draw") for trace in chosen}),
                prompts={prompt: _prompt(prompt, some, captured) for prompt, some in sorted(by_prompt.items())},
            )
        )
    return readings


def untouched_for(
    reading: ConditionReading, readings: Sequence[ConditionReading], baseline: str | None
) -> dict[str, PromptReading]:
    """Return the prompts of the condition that a condition is held against, by name; empty where there is none.

    That is the one named `baseline`; else the baseline of the same workload, of the same stage where that has one;
    else another condition that does nothing to the model, of the same workload. Raises UsageError where several
    conditions could be meant.
    """
    if baseline is not None:
        meant = [other for other in readings if baseline in (other.condition, other.name)]
    else:
        same = [r for r in readings if not r.intervention and r.workload == reading.workload]
        meant = [r for r in same if r.role == "baseline"] or same
        names = sorted({r.condition for r in meant if r.stage == reading.stage} or {r.condition for r in meant})
        if len(names) > 1:
            raise UsageError(f"{reading.name} could be held against {' and '.join(names)}; say which with `baseline`")
        meant = [r for r in meant if r.condition in names]
    found: dict[str, PromptReading] = {}
    for other in sorted(meant, key=lambda r: (r.stage != reading.stage, r.stage)):
        found = {**other.prompts, **found}
    return found


def _without_question(traces: Iterable[Trace]) -> list[tuple[Trace, Outcome]]:
    """Return the traces of prompts that ask nothing and were read: their own loss is what they tell."""
    return [
        (trace, trace.outcome)
        for trace in traces
        if trace.outcome is not None and trace.outcome.correct is None and not trace.outcome.failed
    ]


def _prompt(prompt: str, some: Sequence[tuple[Trace, Outcome]], captured: bool) -> PromptReading:
    first = some[0][0]

    def mean(values: Iterable[float | None]) -> float:
        known = [float(value) for value in values if value is not None and finite(value)]
        return float(np.mean(known)) if known else np.nan

    costs = [getattr(trace, "cost", None) or {} for trace, _ in some]
    return PromptReading(
        prompt=prompt,
        length=length(first),
        depth=depth(first),
        tokens=first.sample.tokens,
        accuracy=mean(None if o.correct is None else 100.0 * o.correct for _, o in some),
        answer_loss=mean(o.answer_loss for _, o in some),
        text_loss=mean(o.text_loss for _, o in some),
        seconds=mean(cost.get("seconds") for cost in costs),
        peak_bytes=max((float(cost["peak_bytes"]) for cost in costs if cost.get("peak_bytes")), default=np.nan),
        captured=captured,
        traces=tuple(trace for trace, _ in some),
    )


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in fields.items() if value is not None)


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"

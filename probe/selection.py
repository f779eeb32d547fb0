"""Which traces an analysis uses, and what it leaves out, by reason and number."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.storage.trace_store import Run, Trace


class LeftOut:
    """Counts what an analysis leaves out, so that nothing is skipped in silence."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def add(self, reason: str, number: int = 1) -> None:
        """Count `number` more traces that were left out for this reason."""
        self.reasons[reason] = self.reasons.get(reason, 0) + number

    @property
    def total(self) -> int:
        """Number of traces left out, for whatever reason."""
        return sum(self.reasons.values())

    def notes(self) -> tuple[str, ...]:
        """Return one sentence a reason."""
        return tuple(f"Left out: {number} × {reason}." for reason, number in self.reasons.items())


def role(trace: Trace) -> str:
    """Return the part that a trace plays in a comparison; one that says nothing is a baseline."""
    return str(trace.facts.get("role") or "baseline")


def fact(trace: Trace, name: str) -> Any:
    """Return what the sample, or else the condition, says of `name`; None where neither does."""
    value = trace.sample.facts.get(name)
    return trace.facts.get(name) if value is None else value


def length(trace: Trace) -> int:
    """Return the prompt length that was asked for, in tokens; its own where nothing was asked for."""
    value = fact(trace, "length")
    return len(trace.sample) if value is None else int(value)


def depth(trace: Trace) -> float | None:
    """Return where the needle stands, from 0 (first) to 1 (last); None where the sample does not say."""
    value = fact(trace, "needle_depth")
    return None if value is None else float(value)


def traces_of(run: Run | Trace | Iterable[Trace]) -> list[Trace]:
    """Return the traces of a run, of a single one, or of some."""
    if hasattr(run, "traces"):
        return list(run.traces())
    if hasattr(run, "dataset"):
        return [cast("Trace", run)]
    return list(run)


def selected(
    run: Run | Trace | Iterable[Trace], *, role: str | None = "baseline", half: str | None = None
) -> list[Trace]:
    """Return the traces of one role and one half of the samples, sorted, so that their order decides nothing."""
    chosen = [
        trace
        for trace in traces_of(run)
        if (role is None or (trace.facts.get("role") or "baseline") == role)
        and (half in (None, "both") or fact(trace, "half") == half)
    ]
    chosen.sort(key=lambda trace: (trace.sample.name, trace.condition, trace.unit))
    # A stage that reads the baseline again adds no prompt; of both readings the one that holds more is used.
    again: dict[Hashable, list[Trace]] = {}
    for trace in chosen:
        key = (trace.sample.name, trace.sample.tokens, trace.condition, trace.facts.get("draw"))
        again.setdefault(key, []).append(trace)
    return [
        max(some, key=lambda trace: len(trace.dataset.data_vars)) if len(some) > 1 else some[0]
        for some in again.values()
    ]


def reads_the_text(trace: Trace) -> bool:
    """Return whether a trace's own attention is over the sample's text; a decoder's beside an encoder is not."""
    return "cross" not in trace.parts


def answered(traces: Iterable[Trace], left_out: LeftOut) -> list[tuple[Trace, Outcome]]:
    """Return traces whose answer can be judged; the others are counted. NaN in the logits disqualifies an answer."""
    kept = []
    for trace in traces:
        outcome = trace.outcome
        if outcome is None:
            left_out.add("no outcome recorded")
        elif outcome.failed:
            left_out.add("the unit failed")
        elif any(math.isnan(value) for value in outcome.answer_log_probability):
            left_out.add("the model's logits were not a number")
        elif outcome.correct is None:
            left_out.add("nothing was asked")
        else:
            kept.append((trace, outcome))
    return kept


def holding(traces: Iterable[Trace], statistic: str, left_out: LeftOut) -> list[Trace]:
    """Return the traces that hold a statistic, the others counted; raises MissingStatistic where none of them does."""
    traces = list(traces)
    kept = [trace for trace in traces if statistic in trace]
    if traces and not kept:
        # The store's own error says what the trace has and how to capture the rest.
        traces[0][statistic]
    if len(kept) < len(traces):
        left_out.add(f"{statistic} was not captured", len(traces) - len(kept))
    return kept


def finite(value: float | None) -> bool:
    """Return whether there is a number, and it is finite."""
    return value is not None and math.isfinite(value)


def has_top_keys(trace: Trace) -> bool:
    """Return whether `top_keys` was captured, with any number of ranks."""
    return bool(_top_keys(trace))


def _top_keys(trace: Trace) -> list[str]:
    names = [str(name) for name in trace.dataset.data_vars]
    return [name for name in names if re.fullmatch(r"top_keys(_k_\d+)?", name)]


def largest_key(trace: Trace) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the largest probability and its key for each decoded row, `[layer head row]` each, from `top_keys`.

    Any captured number of ranks serves, since rank 0 is the same in all. Raises MissingStatistic where there is none.
    """
    captured = _top_keys(trace)
    # With one rank it is smaller to read; a trace with none raises the store's own error.
    name = min(captured, key=lambda name: (trace.dataset[name].sizes.get("rank", 1), name)) if captured else "top_keys"
    arrays = []
    for part in (f"{name}_probability", name):
        array = trace[part]
        if "rank" in array.dims:
            array = array.isel(rank=0)
        arrays.append(array.transpose("layer", "head", "row").to_numpy())
    return arrays[0], arrays[1]


def interventions_of(facts: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return what a condition did, as names with fields in the order of entering; empty where it did nothing."""
    intervention = facts.get("intervention")
    if not isinstance(intervention, Mapping) or not intervention:
        return []
    name, fields = next(iter(intervention.items()))
    fields = fields if isinstance(fields, Mapping) else {}
    if name != "together":
        return [(str(name), fields)]
    return [each for part in fields["interventions"] for each in interventions_of({"intervention": part})]


def intervention_text(facts: Mapping[str, Any]) -> str:
    """Return an intervention in words, e.g. `ablate_heads (form zero, phase both)`; empty where there was none."""
    said = []
    for name, fields in interventions_of(facts):
        how = ", ".join(f"{key} {fields[key]}" for key in ("form", "phase") if fields.get(key))
        said.append(f"{name} ({how})" if how else name)
    return ", then ".join(said)

"""What each unit was asked and answered, read without its arrays: a thousand units in a few tenths of a second."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from probe.errors import StoreCorrupt, UsageError
from probe.outcome import Outcome
from probe.selection import depth, length, role
from probe.storage.run_folder import Run
from probe.storage.unit_files import SealedFiles
from probe.storage.unit_trace import Trace
from probe.withheld import Withheld

ANSWER: Final = "needle_value"
"""The span that holds the right answer, in workloads that have one."""
MOST_CHARACTERS: Final = 300
"""Characters that are kept of a response and of a right answer."""


@dataclass(frozen=True)
class UnitAnswer:
    """One unit: which sample under which condition, and how it went."""

    unit: str
    stage: str
    condition: str
    role: str
    """`baseline`, `treatment`, `control`, …; one that says nothing is a baseline."""
    sample: str
    """The sample's name."""
    draw: int | None = None
    """Which random draw of a control; None where nothing was drawn."""
    prompt: str = ""
    """Hash of the sample as it is stored: the same for units that read the very same one."""
    length: int = 0
    """The length that was asked for, in tokens; the prompt's own where none was."""
    depth: float | None = None
    """Where the needle stands, from 0 (first) to 1 (last); None where the sample does not say."""
    answer: str = ""
    """The right answer, cut at `MOST_CHARACTERS`."""
    response: str = ""
    """What the model said, cut alike."""
    correct: bool | None = None
    """None where nothing was asked, or it cannot be told."""
    answer_loss: float | None = None
    """Mean negative log-likelihood of the right answer, in nats per token; None where there is none or it is NaN."""
    text_loss: float | None = None
    """Mean negative log-likelihood of the prompt's tokens, in nats per token; None as above."""
    age: int | None = None
    """Tokens from where the right answer begins in the prompt to the prompt's last; None where no span says."""
    text: str = ""
    """Hash of the prompt's token ids; empty where these are withheld."""
    seconds: float | None = None
    """What reading it took, on the machine that did; None where that is not on record."""
    peak_bytes: int | None = None
    """The most memory meanwhile; None as above."""
    captured: bool = False
    """Whether arrays were captured, which takes time and memory of its own."""
    problem: str = ""
    """Why it counts in no number: it failed, or is not what was written; empty where all is well."""


_SAID = ("stage", "condition", "role", "sample")


@dataclass(frozen=True)
class _Prompt:
    """What is kept of a sample; most units of a run share theirs with others."""

    name: str
    length: int
    depth: float | None
    answer: str
    age: int | None
    text: str


class Answers:
    """Reads the answers of a run, each unit once; a run that grows is read on from where it stood."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], UnitAnswer] = {}
        self._prompts: dict[str, _Prompt] = {}

    def of(self, run: Run) -> dict[str, UnitAnswer]:
        """Return every unit's answer, in the order of commits, each held against its hash.

        A unit that is not what was written is there too, its damage as its `problem`.
        """
        found = {}
        for unit, record in run.units.items():
            key = (unit, str(record["manifest"]))
            if key not in self._known:
                self._known[key] = self._read(run, unit, record)
            found[unit] = self._known[key]
        return found

    def _read(self, run: Run, unit: str, record: Mapping[str, object]) -> UnitAnswer:
        folder = run.path / "trace.zarr" / unit
        try:
            files = SealedFiles(folder, str(record["manifest"]), check_sizes=False)
            trace = Trace(files, str(folder))
            entry = files.manifest.files.get("sample.json")
            sha256 = "" if entry is None else entry.sha256
            if sha256 not in self._prompts:
                self._prompts[sha256] = _prompt(trace)
        except StoreCorrupt as error:
            stage, condition, role_, sample = (str(record.get(key) or "") for key in _SAID)
            return UnitAnswer(unit, stage, condition, role_, sample, problem=str(error))
        captured = any("/c/" in path for path in files.manifest.files)
        return _answer(trace, self._prompts[sha256], sha256, captured=captured)


def answer_of(trace: Trace) -> UnitAnswer:
    """Return what a trace was asked and answered, one of its own or in memory among them."""
    prompt = _prompt(trace)
    return _answer(trace, prompt, prompt.text, captured=bool(trace.stored_names()))


def _answer(trace: Trace, prompt: _Prompt, sha256: str, *, captured: bool) -> UnitAnswer:
    outcome = trace.outcome
    draw = trace.facts.get("draw")
    read = UnitAnswer(
        unit=trace.unit,
        stage=trace.stage,
        condition=trace.condition,
        role=role(trace),
        sample=prompt.name,
        draw=None if draw is None else int(draw),
        prompt=sha256,
        length=prompt.length,
        depth=prompt.depth,
        answer=prompt.answer,
        age=prompt.age,
        text=prompt.text,
        captured=captured,
        **_cost(trace.cost),
    )
    if outcome is None:
        return read
    return replace(
        read,
        response=outcome.response[:MOST_CHARACTERS],
        correct=outcome.correct,
        answer_loss=_number(outcome.answer_loss),
        text_loss=_number(outcome.text_loss),
        problem=outcome.failed or ("the model's logits were not a number" if _not_a_number(outcome) else ""),
    )


def answers_of(run: Run | Trace | Iterable[UnitAnswer]) -> list[UnitAnswer]:
    """Return the answers of a run, in the order of commits; answers that were read already as they are."""
    if isinstance(run, Trace):
        raise UsageError("a trace of its own is one answer; a grid of them wants a run")
    return list(Answers().of(run).values() if isinstance(run, Run) else run)


def _prompt(trace: Trace) -> _Prompt:
    sample = trace.sample
    starts = [span.start for span in sample.spans if span.name == ANSWER]
    return _Prompt(
        name=sample.name,
        length=length(trace),
        depth=depth(trace),
        answer=sample.answer[:MOST_CHARACTERS],
        age=len(sample) - 1 - starts[0] if starts else None,
        text="" if isinstance(sample.tokens, Withheld) else hashlib.sha256(repr(sample.tokens).encode()).hexdigest(),
    )


def _cost(cost: Mapping[str, Any] | None) -> dict[str, Any]:
    said = cost or {}
    return {"seconds": _number(said.get("seconds")), "peak_bytes": said.get("peak_bytes")}


def _not_a_number(outcome: Outcome) -> bool:
    return any(math.isnan(value) for value in outcome.answer_log_probability)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

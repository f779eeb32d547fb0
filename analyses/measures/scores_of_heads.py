"""Every score that a run has of each head, side by side: of its findings, of its ablations and of one unit's trace."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.ablated_heads import alone
from probe.analyses.measures.head_reductions import kv_heads_of, layers_of, reductions
from probe.errors import UsageError
from probe.finding import Finding
from probe.storage.trace_store import Run, Trace
from probe.storage.unit_answer import UnitAnswer, answers_of
from probe.telling.finding_keys import finding_keys

Floats = NDArray[np.float64]
Head = tuple[int, int]

TRACE: Final = "trace"
"""What the keys of a trace's own scores begin with."""
_NO_SCORES: Final = ("layer", "head", "kv_head")


@dataclass(frozen=True)
class Score:
    """One number a head: where it comes from and what it means. Read when it is first asked for."""

    key: str
    """Its name in an address: `retrieval_heads.score`, `trace.entropy`."""
    name: str
    unit: str
    words: str
    """What it is, and how it was reduced to one number a head."""
    make: Callable[[], Floats] = field(repr=False, compare=False)
    stored_bytes: int = 0
    """Size of what must be read for it."""

    @functools.cached_property
    def values(self) -> Floats:
        """`[head]`, in the order of `ScoresOfHeads.heads`; NaN where there is none."""
        return self.make()

    @property
    def num_heads(self) -> int:
        """How many heads have one."""
        return int(np.isfinite(self.values).sum())

    def rank(self, at: int) -> tuple[int, float] | None:
        """Return the rank of the head at an index, 1 for the largest, and its percentile; None where it has no score.

        The percentile is the share of the heads with a score that have a smaller one, those with the same counted half.
        """
        mine, known = self.values[at], self.values[np.isfinite(self.values)]
        if not np.isfinite(mine):
            return None
        above, same = int((known > mine).sum()), int((known == mine).sum())
        return above + 1, 100 * (len(known) - above - same / 2) / len(known)


@dataclass(frozen=True)
class ScoresOfHeads:
    """All heads and their scores."""

    heads: tuple[Head, ...]
    """Layer and query head, in order."""
    scores: Mapping[str, Score]
    """By key: of findings first, then of ablations, then of the unit's trace."""
    labels: Mapping[str, Mapping[Head, str]]
    """What findings say of heads in words, by `finding.column`: roles."""
    num_heads: Mapping[int, int]
    """Number of query heads by layer, of the layers of which the unit holds something."""
    kv_heads: Mapping[int, int]
    """Number of key-value heads by layer, as far as it is known."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    @functools.cached_property
    def index(self) -> dict[Head, int]:
        """Where each head stands in `heads`."""
        return {head: at for at, head in enumerate(self.heads)}

    @functools.cached_property
    def by_layer(self) -> dict[int, list[int]]:
        """The heads of each layer."""
        found: dict[int, list[int]] = {}
        for layer, head in self.heads:
            found.setdefault(layer, []).append(head)
        return found

    def score(self, key: str) -> Score:
        """Return a score by its key; raises UsageError naming those that there are."""
        if key not in self.scores:
            raise UsageError(f"there is no score {key!r} of heads here; there are {', '.join(self.scores) or 'none'}")
        return self.scores[key]

    def group(self, head: Head) -> tuple[int, list[int]] | None:
        """Return the key-value head that a query head reads, and the query heads that read it; None where unknown."""
        num, num_kv = self.num_heads.get(head[0], 0), self.kv_heads.get(head[0], 0)
        if not num or not num_kv or num % num_kv:
            return None
        size = num // num_kv
        return head[1] // size, list(range(head[1] // size * size, (head[1] // size + 1) * size))


def scores_of_heads(run: Run | Trace, unit: str = "") -> ScoresOfHeads:
    """Return the scores of a run's findings and ablations, and of one of its units (its first, where none is named).

    Of a trace of its own those of its arrays. Raises KeyError for a unit that there is not.
    """
    if isinstance(run, Trace):
        return gathered(run, {})
    trace = run.trace(unit or next(iter(run.units))) if run.units else None
    return gathered(trace, finding_keys(run.findings()), run.record, lambda: answers_of(run))


def gathered(
    trace: Trace | None,
    findings: Mapping[str, Finding],
    record: Mapping[str, Any] | None = None,
    answers: Callable[[], Sequence[UnitAnswer]] = lambda: [],
) -> ScoresOfHeads:
    """Return the scores of findings by their keys, of what a run's record says was ablated, and of a trace."""
    tables: list[tuple[str, str, str, Mapping[Head, Any]]] = []
    labels: dict[str, Mapping[Head, str]] = {}
    notes: list[str] = []
    for key, finding in findings.items():
        columns, problem = _columns(finding)
        notes += [f"{key}: {problem}"] if problem else []
        for column, values in columns.items():
            if all(isinstance(value, str) for value in values.values()):
                labels[f"{key}.{column}"] = values
            elif not any(isinstance(value, str) for value in values.values()):
                words = f"The column {column} of the finding {key}: {finding.definition}"
                truth = " (1 true, 0 false)" if all(type(value) is bool for value in values.values()) else ""
                tables.append((f"{key}.{column}", f"{key}: {column.replace('_', ' ')}{truth}", words, values))
    for name, words, values in alone(record or {}, answers):
        tables.append((f"ablated.{name}", f"ablated alone: {name}", words, values))
    stored = {} if trace is None else trace.heads
    known = {(layer, head) for layer, count in stored.items() for head in range(count)}
    heads = tuple(sorted(known.union(*(values for *_, values in tables), *labels.values())))
    scores = {
        key: Score(key, name, "nats per token" if key.startswith("ablated.") else "", words, _of(values, heads))
        for key, name, words, values in tables
    }
    if trace is not None:
        layers = layers_of(trace)
        for each in reductions(trace):
            key = f"{TRACE}.{each.key}"
            scores[key] = Score(
                key, each.name, each.unit, each.words, _placed(each.read, layers, heads), each.stored_bytes
            )
    return ScoresOfHeads(heads, scores, labels, stored, {} if trace is None else kv_heads_of(trace), tuple(notes))


def spearman(x: Floats, y: Floats) -> tuple[float | None, int]:
    """Return Spearman's rank correlation over the heads that have both, and their number; None where one is constant.

    Equal values share their mean rank.
    """
    both = np.isfinite(x) & np.isfinite(y)
    across, up = _ranked(x[both]), _ranked(y[both])
    if both.sum() < 3 or np.ptp(across) == 0 or np.ptp(up) == 0:
        return None, int(both.sum())
    return float(np.corrcoef(across, up)[0, 1]), int(both.sum())


def _ranked(values: Floats) -> Floats:
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[inverse])


def _columns(finding: Finding) -> tuple[dict[str, dict[Head, Any]], str]:
    """Return a table's columns by head, what is empty left out; and why there is none, where it is a table of heads."""
    if "layer" not in finding.columns or "head" not in finding.columns:
        return {}, ""
    at = finding.columns.index("layer"), finding.columns.index("head")
    heads = [(row[at[0]], row[at[1]]) for row in finding.table]
    if not all(type(number) is int for head in heads for number in head):
        return {}, "its table has rows that name no head by its layer and its number"
    if (most := max(Counter(heads).values(), default=0)) > 1:
        return {}, f"its table has up to {most} rows a head, none of which is the head's score"
    found: dict[str, dict[Head, Any]] = {}
    for place, column in enumerate(finding.columns):
        values = {head: row[place] for head, row in zip(heads, finding.table, strict=True) if row[place] is not None}
        simple = all(isinstance(value, int | float | str) for value in values.values())
        if column not in _NO_SCORES and values and simple:
            found[column] = values  # type: ignore[assignment]
    return found, ""


def _of(values: Mapping[Head, Any], heads: Iterable[Head]) -> Callable[[], Floats]:
    def make() -> Floats:
        found = np.array([float(values.get(head, np.nan)) for head in heads])
        return np.where(np.isfinite(found), found, np.nan)

    return make


def _placed(read: Callable[[], Floats], layers: Sequence[int], heads: Sequence[Head]) -> Callable[[], Floats]:
    def make() -> Floats:
        values, row = read(), {layer: at for at, layer in enumerate(layers)}
        return np.array(list(_looked_up(values, row, heads)))

    return make


def _looked_up(values: Floats, row: Mapping[int, int], heads: Sequence[Head]) -> Iterator[float]:
    for layer, head in heads:
        there = layer in row and row[layer] < values.shape[0] and head < values.shape[1]
        yield float(values[row[layer], head]) if there else np.nan

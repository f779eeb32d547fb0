"""How far a number of each head differs between two runs, or between two conditions over the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.head_reductions import Reduction, layers_of, reductions
from probe.analyses.measures.scores_of_heads import TRACE, gathered
from probe.errors import MissingStatistic, UsageError
from probe.finding import Finding
from probe.intervals import FEWEST_PROMPTS, mean_ends
from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]
Head = tuple[int, int]

MOST_PAIRS: Final = 12
"""Prompts that are read on both sides."""
MOST_BYTES: Final = 48 * 2**20
"""Bytes of one array that are read on one side, all prompts together; a single prompt is read whatever its size."""


@dataclass(frozen=True)
class HeadDifference:
    """One number a head on each side."""

    name: str
    unit: str
    words: str
    """What the number is."""
    layers: tuple[int, ...]
    first: Floats
    """`[layer head]` A's; NaN where a head is not, or has none."""
    second: Floats
    low: Floats | None
    """`[layer head]` Ends of the 95 % interval of B less A, over prompts; None where it is of a finding, or of few."""
    high: Floats | None
    num_pairs: int | None
    """Prompts read on both sides; None where it is of a finding."""

    @property
    def difference(self) -> Floats:
        """B less A, `[layer head]`."""
        return self.second - self.first

    @property
    def told(self) -> tuple[Head, ...]:
        """Rows and columns of the heads whose interval does not hold 0."""
        if self.low is None or self.high is None:
            return ()
        return tuple((int(row), int(head)) for row, head in np.argwhere((self.low > 0) | (self.high < 0)))


def check_shapes(first: Trace, second: Trace) -> None:
    """Raise UsageError, saying both, where two units' models differ in layers or heads: no head is another's."""
    if first.heads != second.heads:
        raise UsageError(
            f"the models differ in shape, so no head of one is a head of the other: A ({_model(first)}) has "
            f"{_shape(first)}, B ({_model(second)}) has {_shape(second)}"
        )


def common_statistics(first: Trace, second: Trace) -> dict[str, str]:
    """Return by key the names of what both units' arrays have of each head; keys begin with `trace.`."""
    there = {each.key for each in reductions(second)}
    return {f"{TRACE}.{each.key}": each.name for each in reductions(first) if each.key in there}


def common_columns(findings: Mapping[str, Finding], others: Mapping[str, Finding]) -> dict[str, str]:
    """Return by key the names of what both runs' findings have of each head."""
    first, second = gathered(None, findings).scores, gathered(None, others).scores
    return {key: score.name for key, score in first.items() if key in second}


def finding_difference(
    key: str, findings: Mapping[str, Finding], others: Mapping[str, Finding], heads: Mapping[int, int]
) -> HeadDifference:
    """Return how a column of the findings of two runs differs, by head; `heads` are the number of each layer."""
    sides = [gathered(None, each) for each in (findings, others)]
    layers = tuple(heads)
    values = [np.full((len(layers), max(heads.values(), default=0)), np.nan) for _ in sides]
    for side, array in zip(sides, values, strict=True):
        for (layer, head), value in zip(side.heads, side.score(key).values, strict=True):
            if layer in heads and head < heads[layer]:
                array[layers.index(layer), head] = value
    score = sides[0].score(key)
    return HeadDifference(score.name, score.unit, score.words, layers, values[0], values[1], None, None, None)


def trace_difference(key: str, pairs: Sequence[tuple[Trace, Trace]]) -> HeadDifference:
    """Return how a statistic of each head differs over prompts read on both sides, the mean over these.

    As many pairs are read as stay within `MOST_PAIRS` and `MOST_BYTES`. Raises MissingStatistic where none has it both
    ways, UsageError as `check_shapes` does.
    """
    read: list[tuple[Floats, Floats]] = []
    about: Reduction | None = None
    for a, b in pairs[:MOST_PAIRS]:
        check_shapes(a, b)
        sides = [{each.key: each for each in reductions(trace)}.get(key) for trace in (a, b)]
        if sides[0] is None or sides[1] is None:
            continue
        if about is not None and (len(read) + 1) * about.stored_bytes > MOST_BYTES:
            break
        about = sides[0]
        read.append((sides[0].read(), sides[1].read()))
    if about is None:
        raise MissingStatistic(f"no prompt that both sides read has {key!r} of each head")
    first, second = (np.array([each[i] for each in read]) for i in (0, 1))
    low = high = None
    if len(read) >= FEWEST_PROMPTS:
        less = second - first
        known = np.isfinite(less).all(0)
        low, high = (np.full(known.shape, np.nan) for _ in range(2))
        low[known], high[known] = mean_ends(less[:, known])
    layers = tuple(layers_of(pairs[0][0]))
    return HeadDifference(
        about.name, about.unit, about.words, layers, first.mean(0), second.mean(0), low, high, len(read)
    )


def _model(trace: Trace) -> str:
    return str(trace.provenance.get("model") or "a model without a name")


def _shape(trace: Trace) -> str:
    counts = list(trace.heads.values())
    if not counts:
        return "no heads of which anything was captured"
    heads = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    return f"{len(counts)} layers of {heads} heads"

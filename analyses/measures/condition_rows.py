"""The table behind `compare_conditions`: a row for each condition, one a length, one a depth, one for both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from pydantic import JsonValue

from probe.analyses.measures.condition_effect import Difference
from probe.analyses.measures.condition_verdict import Judged

COLUMNS: Final = (
    "condition", "role", "verdict", "length", "depth", "num_prompts",
    "accuracy", "accuracy_without", "difference", "difference_low", "difference_high", "q_value",
    "answer_loss", "answer_loss_without", "answer_loss_difference", "answer_loss_low", "answer_loss_high",
    "loss_q_value",
    "text_loss_difference", "text_loss_low", "text_loss_high",
    "seconds", "seconds_without", "peak_mb", "peak_mb_without",
)  # fmt: skip


def condition_rows(judged: Judged) -> Iterator[tuple[JsonValue, ...]]:
    """Yield the rows of a condition: over all, by length, by depth, by both; what a row is over all of is empty.

    Accuracy is in percent, its difference in points, losses in nats per token; q-values are given of whole conditions
    alone, which is the family that they are adjusted over.
    """
    effect = judged.effect
    start = (effect.name, effect.reading.role)
    cost = effect.cost
    took = (
        (cost.seconds, cost.seconds_before, cost.peak_bytes / 1e6, cost.peak_bytes_before / 1e6)
        if cost is not None
        else (None,) * 4
    )
    yield (
        *start, judged.judgement, None, None, effect.accuracy.n,
        *_numbers(*_five(effect.accuracy), judged.accuracy_q),
        *_numbers(*_five(effect.answer_loss), judged.loss_q),
        *_numbers(*_five(effect.text_loss)[2:], *took),
    )  # fmt: skip
    lengths = [(int(at), None, found, effect.loss_by_length.get(at)) for at, found in effect.by_length.items()]
    depths = [(None, at, found, effect.loss_by_depth.get(at)) for at, found in effect.by_depth.items()]
    both = [(int(at[0]), at[1], found, effect.loss_by_cell.get(at)) for at, found in effect.by_cell.items()]
    for length, depth, accuracy, loss in (*lengths, *depths, *both):
        yield (
            *start, None, length, depth, accuracy.n, *_numbers(*_five(accuracy), None),
            *_numbers(*_five(loss), None), *((None,) * 7),
        )  # fmt: skip


def _five(difference: Difference | None) -> tuple[float | None, ...]:
    if difference is None:
        return (None,) * 5
    ends = (None, None) if difference.interval is None else (difference.interval.low, difference.interval.high)
    return difference.value, difference.before, difference.difference, *ends


def _numbers(*values: float | None) -> tuple[JsonValue, ...]:
    return tuple(None if v is None or not np.isfinite(v) else float(f"{v:.4g}") + 0.0 for v in values)

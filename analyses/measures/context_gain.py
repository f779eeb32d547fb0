"""What a longer prompt takes off the loss of each of the same words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probe.errors import MissingStatistic, UsageError
from probe.selection import fact

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

Floats = NDArray[np.float64]

_NAME = re.compile(r"(plain_text)-([0-9]+)-(s[0-9]+)")


def shorter_prompt(run: Run, trace: Trace) -> Trace:
    """Return the trace of the same due words after the near part alone, as `context_use` compares a prompt with.

    The longest undisturbed prompt of at most `near` tokens and a special one; the shortest where none is so short.
    Raises MissingStatistic where the trace is no stretch of plain text, or the run holds no shorter one of it.
    """
    named = _NAME.fullmatch(trace.sample.name)
    if named is None or fact(trace, "distant") is None:
        raise MissingStatistic(
            "context gain compares the same words after a longer and a shorter prompt: the workload plain_text has "
            "such prompts, at several lengths (as the casebook context-use)"
        )
    near = int(fact(trace, "near"))
    found: dict[int, Trace] = {}
    for unit, record in run.units.items():
        other = _NAME.fullmatch(str(record.get("sample")))
        if other is None or other[3] != named[3] or int(other[2]) >= len(trace.sample) or record.get("failed"):
            continue
        if int(other[2]) in found:
            continue
        candidate = run.trace(unit)
        if _same_words(trace, candidate):
            found[int(other[2])] = candidate
    if not found:
        raise MissingStatistic(
            f"the run holds no shorter prompt before the same words as {trace.unit!r}: this is the shortest, or the "
            "workload's lengths are one alone"
        )
    short = [length for length in found if length <= near + 1]
    return found[max(short) if short else min(found)]


def context_gain(trace: Trace, shorter: Trace) -> tuple[Floats, Floats, str]:
    """Return the loss after the shorter prompt less that here, in nats: by position, and of the due words; and words.

    Positions have one where both prompts end in the same tokens and both traces hold their loss. Raises UsageError
    where the due words are others, MissingStatistic where neither has a loss.
    """
    if not trace.sample.answer_tokens or not _equal(trace, shorter):
        raise UsageError(f"{shorter.unit!r} has other due words than {trace.unit!r}, or none")
    due = np.full(len(trace.sample.answer_tokens), np.nan)
    here, there = (np.array(_log_p(each), np.float64) for each in (trace, shorter))
    if here.size == there.size == due.size:
        due = here - there
    size = len(trace.sample) + (0 if trace.outcome is None else len(trace.outcome.response_tokens))
    values = np.full(size, np.nan)
    shared = _shared_end(trace, shorter)
    if shared and all("loss" in each and "token" in each["loss"].dims for each in (trace, shorter)):
        stop, short_stop = len(trace.sample), len(shorter.sample)
        after = trace["loss"].to_numpy().astype(np.float64)[stop - shared : stop]
        before = shorter["loss"].to_numpy().astype(np.float64)[short_stop - shared : short_stop]
        values[stop - shared : stop] = before - after
    if not (np.isfinite(due).any() or np.isfinite(values).any()):
        raise MissingStatistic(f"neither the due words nor the tokens of {trace.unit!r} have a loss in both prompts")
    words = (
        f"Loss of the same token after a prompt of {len(shorter.sample):,} tokens less its loss after this one of "
        f"{len(trace.sample):,}, in nats: above 0 the longer prompt helps. Of the {due.size:,} words that are due"
    )
    also = f", and of the last {shared:,} tokens of the prompt, which both share" if np.isfinite(values).any() else ""
    return values, due, f"{words}{also}; this toolkit's own."


def _log_p(trace: Trace) -> tuple[float, ...]:
    return () if trace.outcome is None else trace.outcome.answer_log_probability


def _equal(one: Trace, other: Trace) -> bool:
    # A private trace holds neither, and samples of one name have the same.
    if one.private or other.private:
        return one.private and other.private and len(one.sample.answer_tokens) == len(other.sample.answer_tokens)
    return one.sample.answer_tokens == other.sample.answer_tokens


def _same_words(trace: Trace, other: Trace) -> bool:
    facts: Any = ("workload_seed", "seed", "text", "target_start")
    return (
        not other.facts.get("intervention")
        and not fact(other, "disturbed_tokens")
        and fact(other, "first_token") in (None, "kept")
        and all(fact(other, name) == fact(trace, name) for name in facts)
        and _equal(trace, other)
    )


def _shared_end(one: Trace, other: Trace) -> int:
    """Return how many tokens the ends of both prompts share; 0 for private ones, which do not say."""
    if one.private or other.private:
        return 0
    size = min(len(one.sample), len(other.sample))
    a, b = (np.array(each.sample.tokens[len(each.sample) - size :], np.int64) for each in (one, other))
    differs = np.flatnonzero(a != b)
    return size - (int(differs[-1]) + 1 if differs.size else 0)

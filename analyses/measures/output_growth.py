"""What a model does while its own output grows: constraints kept, attention left for the prompt, repetition, end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probe.selection import LeftOut, reads_the_text
from probe.withheld import Withheld

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

NGRAM = 4
"""Tokens of a repeat that is counted, as in Welleck et al. 2020 (seq-rep-4)."""


@dataclass(frozen=True)
class Grown:
    """One long answer, as far as it was decoded."""

    prompt: str
    """Name of the sample."""
    unit: str
    """The trace."""
    num_tokens: int
    """Tokens of the prompt."""
    num_decoded: int
    """Tokens of the response, up to the end-of-sequence token where there is one."""
    stopped: bool | None
    """Whether the response ended by itself; None where the sample does not say what ends it."""
    kept: Mapping[tuple[int, str], bool]
    """For each constraint, by item and kind, whether the response holds its phrase."""
    items: tuple[int, ...]
    """Items that the model has to begin by itself, in order."""
    num_items: int
    """Items asked for."""
    repeats: Floats
    """For each decoded token whether the 4 tokens up to it stood in the response before."""
    longest_repeat: int
    """Tokens of the longest stretch that the response holds twice."""
    right_repeats: float | None
    """Share of the right answer's tokens that end a repeat; None where there is no answer."""
    item_loss: tuple[float, ...]
    """Loss of each item of the right answer given the right items before it, in nats per token; empty if unknown."""
    prompt_share: Floats | None
    """Attention to the prompt at each step, `[step layer head]`; None where it was not captured."""

    def rate(self, first: int, last: int, kind: str | None = None) -> float | None:
        """Return the share of the constraints of items `first` to `last` that are kept; None where there is none."""
        held = [kept for (item, of), kept in self.kept.items() if first <= item <= last and kind in (None, of)]
        return float(np.mean(held)) if held else None

    def uniform(self) -> Floats:
        """Return the share of the prompt at each step under uniform attention."""
        return self.num_tokens / (self.num_tokens + np.arange(self.num_decoded))


def grown(traces: Sequence[Trace], left_out: LeftOut) -> Iterator[Grown]:
    """Yield what each trace with constraints and a response shows; others are counted."""
    for trace in traces:
        outcome, facts = trace.outcome, trace.sample.facts
        constraints: Any = facts.get("constraints")
        if outcome is None or outcome.failed or not outcome.response_tokens:
            left_out.add("no answer was decoded")
        elif isinstance(outcome.response_tokens, Withheld) or isinstance(trace.sample.tokens, Withheld):
            left_out.add("a private trace holds no words to look for")
        elif not constraints:
            left_out.add("the sample states no constraints to keep")
        else:
            response = outcome.response.lower()
            tokens, stopped = _until(outcome.response_tokens, facts.get("end_token"))
            repeats = repeated(tokens)
            answer = trace.sample.answer_tokens
            yield Grown(
                prompt=trace.sample.name,
                unit=trace.unit,
                num_tokens=len(trace.sample),
                num_decoded=len(tokens),
                stopped=stopped,
                kept={(int(item), str(kind)): str(phrase).lower() in response for item, kind, phrase in constraints},
                items=tuple(sorted({int(item) for item, kind, _ in constraints if kind != "begun"})),
                num_items=max(int(item) for item, _, _ in constraints),
                repeats=repeats,
                longest_repeat=longest_repeat(tokens),
                right_repeats=float(repeated(answer).mean()) if answer else None,
                item_loss=_item_loss(outcome.answer_log_probability, facts.get("item_stops")),
                prompt_share=_prompt_share(trace, len(tokens)),
            )


def _until(tokens: Sequence[int], end: Any) -> tuple[tuple[int, ...], bool | None]:
    if end is None:
        return tuple(tokens), None
    stop = next((at for at, token in enumerate(tokens) if token == end), None)
    return (tuple(tokens), False) if stop is None else (tuple(tokens[: stop + 1]), True)


def repeated(tokens: Sequence[int]) -> Floats:
    """Return for each token 1.0 where the 4 tokens up to and including it stood earlier in the sequence, else 0.0."""
    seen: set[tuple[int, ...]] = set()
    found = np.zeros(len(tokens))
    for stop in range(NGRAM, len(tokens) + 1):
        gram = tuple(tokens[stop - NGRAM : stop])
        found[stop - 1] = gram in seen
        seen.add(gram)
    return found


def longest_repeat(tokens: Sequence[int]) -> int:
    """Return the tokens of the longest stretch that stands at two places, which may overlap."""
    low, high = 0, max(len(tokens) - 1, 0)
    # A stretch that stands twice has shorter ones that do: the longest is found by halving.
    while low < high:
        middle = (low + high + 1) // 2
        grams = [tuple(tokens[at : at + middle]) for at in range(len(tokens) - middle + 1)]
        if len(set(grams)) < len(grams):
            low = middle
        else:
            high = middle - 1
    return low


def _item_loss(log_probability: Sequence[float], stops: Any) -> tuple[float, ...]:
    if not stops or not log_probability or not np.isfinite(log_probability).all():
        return ()
    edges = [0, *(int(stop) for stop in stops)]
    if edges[-1] > len(log_probability) or any(a >= b for a, b in pairwise(edges)):
        return ()
    return tuple(-float(np.mean(log_probability[start:stop])) for start, stop in pairwise(edges))


def _prompt_share(trace: Trace, num_decoded: int) -> Floats | None:
    if "span_mass" not in trace or not reads_the_text(trace):
        return None
    array = trace["span_mass"]
    if "prompt" not in array["span"].to_numpy().tolist() or array.sizes["row"] == 0:
        return None
    mass = array.sel(span="prompt").transpose("row", "layer", "head").to_numpy().astype(np.float64)
    return np.asarray(mass[:num_decoded], np.float64)


def sees_the_prompt(seen: Sequence[Grown]) -> NDArray[np.bool_] | None:
    """Return which heads give the prompt anything in the last eighth of the steps, `[layer head]`; None without any.

    A head whose window has left the prompt gives it exactly nothing, and says nothing of drift.
    """
    shares = [each.prompt_share for each in seen if each.prompt_share is not None]
    if not shares:
        return None
    late = [share[len(share) - max(1, len(share) // 8) :] for share in shares]
    return np.asarray(np.any([np.nan_to_num(each).max(axis=0) > 0 for each in late], axis=0), np.bool_)

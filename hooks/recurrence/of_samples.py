"""One sample's recurrence from what a layer put through of a whole batch, held against the model's own numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from probe.hooks.recurrence.layer import scanned
from probe.hooks.recurrence.verification import disagreement
from probe.hooks.sequence.forward_facts import Phase, forward_facts
from probe.kernels.recurrence import Recurrence

Refusal = Callable[[str], NoReturn]
"""Raises `NotReproducible` with the reason, the model and the layer."""

_BY_TOKEN = ("query", "key", "value", "gate", "log_decay", "read_gate", "bonus")


def of_samples(
    whole: scanned, facts: forward_facts, layer: int, refuse: Refusal, starts: Mapping[int, int] | None = None
) -> Iterator[tuple[int, tuple[int, int], Recurrence]]:
    """Yield each sample with its rows of the forward, and their recurrence, which gives what the model computed.

    `starts` are the positions of the first tokens of samples of which the forward's facts do not tell them.
    """
    for sample in range(facts.num_samples):
        first, last = facts.queries_of(sample)
        if first == last:
            continue
        start = facts.num_past + first - facts.ranges[sample][0]
        start = (starts or {}).get(sample, start)
        recurrence = _of_sample(whole, sample, (first, last), start, layer, refuse)
        after = whole.state_after if last == facts.num_queries else None
        reason = disagreement(
            recurrence,
            whole.output[sample, first:last],
            skip=whole.skip,
            output_gate=None if whole.output_gate is None else whole.output_gate[sample, first:last],
            state_after=None if after is None else after[sample],
        )
        if reason is not None:
            refuse(f"{reason}; it may not keep the padding before it out of its state" if first else reason)
        yield sample, (first, last), recurrence


def phases(recurrence: Recurrence, facts: forward_facts) -> list[tuple[Phase, int, int]]:
    """Return where a forward's tokens change their phase, as attention calls do: phase, first token, one past the
    last."""
    count = recurrence.num_tokens
    if facts.phase is not None:
        return [(facts.phase, 0, count)]
    if facts.num_past > 0 or recurrence.start > 0 or count == 1:
        return [("decode", 0, count)]
    return [("prefill", 0, count - 1), ("decode", count - 1, count)]


def by_phase(recurrence: Recurrence, facts: forward_facts) -> list[Recurrence]:
    """Return the parts of a recurrence that are of one phase each."""
    return [
        dataclasses.replace(recurrence.between(first, stop), phase=phase)
        for phase, first, stop in phases(recurrence, facts)
    ]


def _of_sample(
    whole: scanned, sample: int, rows: tuple[int, int], start: int, layer: int, refuse: Refusal
) -> Recurrence:
    first, last = rows
    if start == 0:
        # Padding before the first token leaves no trace in a state, or else what follows disagrees.
        state = None if first > 0 or whole.state_before is None else whole.state_before[sample]
        if state is not None and bool((state != 0).any()) and whole.value.shape[1] > 0:
            refuse(
                "it goes on from a state, but how many tokens came before cannot be told: put them through with "
                "`prefill` and `step`"
            )
    elif whole.state_before is None:
        refuse(f"it begins anew at position {start} instead of going on from its state")
    else:
        state = whole.state_before[sample]
    if state is None:
        shape = whole.value.shape[2], whole.key.shape[-1], whole.value.shape[-1]
        state = whole.value.new_zeros(shape, dtype=whole.state_dtype)
    cut = {
        name: tensor[sample, first:last].detach() for name in _BY_TOKEN if (tensor := getattr(whole, name)) is not None
    }
    rate = None if whole.rate is None else whole.rate.detach()
    return Recurrence(layer=layer, **cut, state_before=state.detach(), rate=rate, delta=whole.delta, start=start)

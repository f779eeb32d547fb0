"""What a private trace leaves out of a sample and an answer."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Final

from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.withheld import Withheld

_SPAN_NAMES: Final = re.compile(
    r"(needle|needle_value|question|answer|haystack|context|(distractor|document)_[0-9]{1,6})"
)
"""Names that say what part a span plays; any other may be a piece of the text."""

_FACTS: Final = frozenset(
    {
        "length", "needle_depth", "seed", "workload_seed", "needle", "half", "num_tokens", "num_distractors",
        "unknown_tokens", "stripped_special_tokens", "achieved_depth", "answer_tokens_as_in_needle",
        "haystack_sentences", "haystack_repeats",
    }
)  # fmt: skip
"""Facts of a sample that say nothing of its words."""

_NAME: Final = re.compile(r"(needle-[0-9.]+-[0-9.]+-s[0-9]+|text|tokens|sample-[0-9a-f]{8})")


def withheld_sample(sample: Sample) -> Sample:
    """Return the sample without its tokens, its text, its answer, and whatever else may hold a piece of them.

    What stays: how many tokens there are, where the spans lie, and facts that are numbers of the workload's grid. A
    span whose name is not one of the known parts is called by its number; a sample's name that a workload's grid did
    not make becomes a hash of itself.
    """
    spans = tuple(
        span if _SPAN_NAMES.fullmatch(span.name) else Span(f"span_{i}", span.start, span.stop)
        for i, span in enumerate(sample.spans)
    )
    name = sample.name
    if not _NAME.fullmatch(name):
        name = f"sample-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"
    return Sample(
        name=name,
        tokens=Withheld.of(len(sample.tokens)),
        spans=spans,
        answer_tokens=Withheld.of(len(sample.answer_tokens)),
        success_rule=sample.success_rule,
        max_new_tokens=sample.max_new_tokens,
        facts={key: value for key, value in sample.facts.items() if key in _FACTS},
    )


def withheld_outcome(outcome: Outcome) -> Outcome:
    """Return the outcome without the answer's words; whether it was right, its length and its losses stay."""
    failed = outcome.failed
    if failed is not None:
        failed = re.sub(r"\btoken \d+", "a token", failed)
    return dataclasses.replace(
        outcome, response="", response_tokens=Withheld.of(len(outcome.response_tokens)), failed=failed
    )

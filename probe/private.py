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
    r"(instruction|context|prompt|haystack|question(_before)?|answer|dummy|distant|near|first_token|needle(_(key|value|value_again|fact))?"
    r"|(needle|needle_value|needle_fact|distractor|document|step|query|write)_[0-9]{1,6}"
    r"|distractor_[0-9]{1,6}_[0-9]{1,6}|thinking(_[0-9]{1,6})?|(system|developer|user|assistant|tool)_[0-9]{1,6})"
)
"""Names that say what part a span plays; any other may be a piece of the text."""

_FACTS: Final = frozenset(
    {
        "length", "needle_depth", "seed", "workload_seed", "needle", "half", "num_tokens", "num_distractors",
        "unknown_tokens", "stripped_special_tokens", "achieved_depth", "answer_tokens_as_in_needle",
        "haystack_sentences", "haystack_repeats", "given", "kind", "num_pairs", "gold_index", "num_documents",
        "num_needles", "num_answers", "filler_sentences", "noise_sentences", "padding_sentences", "chains", "hops",
        "num_common", "common_repeats", "uncommon_repeats", "num_uncommon", "alpha", "num_words", "steps", "threads",
        "items", "direction", "num_people", "order", "p", "num_writes", "num_reads", "age_pairs", "distance", "line",
        "distant", "disturbed_tokens", "near", "first_token", "first_token_special",
    }
)  # fmt: skip
"""Facts of a sample that say nothing of its words, where they are numbers or of the words below."""

_WORDS: Final = frozenset(
    {
        "present", "absent", "find", "test", "all", "gold_only", "gold_absent", "gold_dummy", "all_dummies",
        "closed_book", "uuids", "numbers", "words", "forward", "backward", "random", "shuffled", "replaced",
        "kept", "dropped", "moved",
    }
)  # fmt: skip
"""What a workload's own fields may be; a user's facts of the same name may be anything."""

_NAME: Final = re.compile(
    r"(needle|passkey|key_values|needles|documents|variable_tracking|common_words|frequent_words|needle_threading"
    r"|ancestral_trace|flip_flop|associative_recall|long_answer|own_documents|plain_text)-[0-9]+(-[0-9.]+)*-s[0-9]+"
    r"|padded_question-[0-9]+-(duplicate|similar|different)-[0-9.]+-[0-9.]+-s[0-9]+"
    r"|own_prompts-[0-9]+|text|tokens|sample-[0-9a-f]{8}"
)


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
        facts={key: value for key, value in sample.facts.items() if key in _FACTS and _says_nothing(value)},
    )


def _says_nothing(value: object) -> bool:
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and value in _WORDS)


def withheld_outcome(outcome: Outcome) -> Outcome:
    """Return the outcome without the answer's words; whether it was right, its length and its losses stay."""
    failed = outcome.failed
    if failed is not None:
        failed = re.sub(r"\btoken \d+", "a token", failed)
    return dataclasses.replace(
        outcome, response="", response_tokens=Withheld.of(len(outcome.response_tokens)), failed=failed
    )

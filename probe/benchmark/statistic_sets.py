"""Which statistics a measurement asks for: the core table, the five of a first look, or single ones."""

from __future__ import annotations

from collections.abc import Sequence

from probe.errors import UsageError

CORE = (
    "log_sum_exp",
    "entropy",
    "max_probability",
    "max_logit",
    "sink_mass",
    "recent_mass",
    "offset_mass",
    "match_mass",
    "mean_distance",
    "distance_histogram",
    "received_mass",
    "attention_map",
    "key_norm",
    "value_norm",
)
"""The core table over a whole prompt. What is left out is of the few rows that answer (span masses, top keys, shares of
the output) and is in a traced model's figures."""
FIVE = ("entropy", "received_mass", "max_probability", "mean_distance", "log_sum_exp")
"""What the prototype of the scan computed."""
ROWS = ("span_mass", "top_keys", "output_norm_share")
"""Of the rows that produce an answer: a traced model computes them besides."""


def statistic_sets(asked: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the sets by name: `core`, `five`, a statistic's own name, or `each` for every one of the core table alone.

    Raises UsageError for anything else.
    """
    sets: dict[str, tuple[str, ...]] = {}
    for name in asked:
        if name == "core":
            sets["core"] = CORE
        elif name == "five":
            sets["five"] = FIVE
        elif name == "each":
            sets |= {statistic: (statistic,) for statistic in CORE}
        elif name in CORE:
            sets[name] = (name,)
        else:
            raise UsageError(f"--statistics: there is no {name!r}; there are core, five, each, {', '.join(CORE)}")
    return sets

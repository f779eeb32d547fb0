"""What the pages about heads share: what fills them, and how much is read unasked."""

from __future__ import annotations

from typing import Final

MOST_BYTES: Final = 64 * 2**20
"""Size of an array that a table reads unasked; larger ones are kept per token of a long prompt."""

NOTHING: Final = (
    "No score of any head is in this run. To fill it: an analysis of heads (retrieval_heads, head_roles, "
    "attention_sinks, positional_heads, attention_dispersion) in a casebook, or a statistic of attention in its "
    "capture, such as entropy, sink_mass, recent_mass, mean_distance, max_probability, distance_histogram"
)
"""What stands where nothing is known of any head."""

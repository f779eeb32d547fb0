"""What one query attends to, token by token: exact where that was kept, else what was captured of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probe.errors import MissingStatistic, UsageError
from probe.storage.window import HOW, MOST_TOKENS

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class QueryAttention:
    """A query's attention by position."""

    values: Floats
    """`[token]`: p of the prompt's and the answer's tokens; NaN where it cannot see one, or nothing was captured."""
    words: str
    """Where they come from, and what they are."""
    exact: bool
    """Whether each value is the token's own p."""
    block_tokens: int = 1
    """How many consecutive tokens share a value."""


def query_attention(trace: Trace, layer: int, head: int, query: int) -> QueryAttention:
    """Return what the query at a position attends to in one head.

    From the queries and keys that were kept; else from an attention map whose cells are single tokens; else, for the
    queries that produced the answer, from their `top_keys` and `span_mass`; else from the finest level of the map,
    whose cells many tokens share. `words` says which. Raises UsageError for a position at which no query was seen,
    MissingStatistic where nothing of it was captured.
    """
    if not 0 <= query < trace.num_queries:
        raise UsageError(f"there is no query {query:,}; those of this unit are 0 to {trace.num_queries - 1:,}")
    size = len(trace.sample) + (0 if trace.outcome is None else len(trace.outcome.response_tokens))
    if str(layer) in trace.kept_layers:
        return _exact(trace, layer, head, query, size)
    pooled = _pooled(trace, layer, head, query, size)
    if pooled is not None and pooled.exact:
        return pooled
    found = _row(trace, layer, head, query, size) or pooled
    if found is not None:
        return found
    raise MissingStatistic(
        f"what query {query:,} attends to was not captured in layer {layer} of the unit {trace.unit!r}. To see it for "
        f"any query, {HOW % (layer, layer)}; for all of them coarsely, statistics=['attention_map']; for those that "
        "produced the answer, statistics=['top_keys', 'span_mass']"
    )


def _exact(trace: Trace, layer: int, head: int, query: int, size: int) -> QueryAttention:
    facts = trace.kept_layers[str(layer)]
    start = int(facts["key_start"])
    stop = query + 1 if facts["causal"] else trace.num_queries
    values = np.full(max(size, stop), np.nan)
    for first in range(start, stop, MOST_TOKENS):
        last = min(first + MOST_TOKENS, stop)
        row = trace.window(layer, head, queries=slice(query, query + 1), keys=slice(first, last))
        values[first:last] = row[0]
    words = f"Exact p of query {query:,} in head {head} of layer {layer}, from the queries and keys that were kept."
    return QueryAttention(values[:size], words, exact=True)


def _row(trace: Trace, layer: int, head: int, query: int, size: int) -> QueryAttention | None:
    """Return what was captured of a query that produced a token of the answer; None where nothing was."""
    row = query - (len(trace.sample) - 1)
    values, words = np.full(size, np.nan), []
    spans = "span_mass" if "span_mass" in trace else ""
    if spans and _has(trace, spans, layer, row):
        masses = np.asarray(trace[spans].sel(layer=layer).isel(head=head, row=row).to_numpy(), np.float64)
        named = dict(zip(map(str, trace[spans]["span"].to_numpy()), masses.tolist(), strict=True))
        # A span within another is the more telling one.
        for span in sorted(trace.sample.spans, key=len, reverse=True):
            if len(span) and np.isfinite(named.get(span.name, np.nan)):
                values[span.start : span.stop] = named[span.name] / len(span)
        if np.isfinite(values).any():
            words.append("a span's tokens share its mass (span_mass) evenly")
    tops = [name for name in trace if re.fullmatch(r"top_keys(_k_[0-9]+)?", name) and _has(trace, name, layer, row)]
    if tops:
        name = max(tops, key=lambda each: trace[each].sizes["rank"])
        at = {"head": head, "row": row}
        keys = np.asarray(trace[name].sel(layer=layer).isel(at).to_numpy(), np.int64)
        p = np.asarray(trace[f"{name}_probability"].sel(layer=layer).isel(at).to_numpy(), np.float64)
        seen = (keys >= 0) & (keys < size)
        values[keys[seen]] = p[seen]
        # Of a layer that was not asked for there are none.
        if seen.any():
            words.append(f"the {int(seen.sum()):,} keys with the largest p have it exactly (top_keys)")
    if not words:
        return None
    said = f"Of query {query:,} in head {head} of layer {layer} rows were captured: {', '.join(reversed(words))}."
    return QueryAttention(values, f"{said} Of the other tokens nothing is known.", exact=False)


def _has(trace: Trace, name: str, layer: int, row: int) -> bool:
    array = trace[name]
    return 0 <= row < array.sizes["row"] and layer in array["layer"].values


def _pooled(trace: Trace, layer: int, head: int, query: int, size: int) -> QueryAttention | None:
    """Return the finest level of the attention map; None where the layer has none."""
    try:
        read = trace.pyramid(layer, head, 0, queries=slice(query, query + 1))
    except MissingStatistic:
        return None
    tokens = int(read.attrs["block_tokens"])
    first = int(read["query_block"].to_numpy()[0])
    last = min(first + tokens, trace.num_queries) - 1
    starts = np.asarray(read["key_block"].to_numpy(), np.int64)
    counts = np.clip(trace.num_queries - starts, 1, tokens)
    shares = np.asarray(read["mean"].to_numpy()[0], np.float64) / counts
    each = np.repeat(shares, tokens)[: trace.num_queries]
    values = np.full(max(size, each.size), np.nan)
    values[: each.size] = each
    values[last + 1 :] = np.nan
    if tokens == 1:
        words = f"Exact p of query {query:,} in head {head} of layer {layer}, from the attention map that was captured."
        return QueryAttention(values[:size], words, exact=True)
    words = (
        f"The finest level of the attention map of head {head} of layer {layer}: the mean over queries {first:,} to "
        f"{last:,}, the mass of each block of {tokens:,} keys shared evenly among them. For query {query:,} exactly, "
        f"{HOW % (layer, layer)}."
    )
    return QueryAttention(values[:size], words, exact=False, block_tokens=tokens)

"""Exact attention probabilities of any window of one head, from the queries and keys that a trace kept."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from probe.errors import UsageError
from probe.storage.stored_array import StoredArray
from probe.storage.unit_files import UnitFiles

MOST_TOKENS: Final = 2048
"""Queries and keys of a window, at most: coarser views come from the pyramid."""

HOW: Final = "capture: {queries_and_keys: [%s]} in a casebook, or probe.trace(…, queries_and_keys=[%s])"


def window(
    files: UnitFiles, attention: Mapping[str, Any], layer: int, head: int, queries: slice, keys: slice
) -> np.ndarray[Any, Any]:
    """Return p_ij as float32 `[query key]`, reading the chunks that the window touches and no others.

    `attention` says how each layer that was kept attends. Raises UsageError where the layer's queries and keys were not
    kept or the window is larger than `MOST_TOKENS`, IndexError naming the valid range outside of the prompt.
    """
    facts = attention.get(str(layer))
    if facts is None:
        kept = f"those of layers {', '.join(sorted(attention, key=int))} were" if attention else "none were"
        raise UsageError(f"queries and keys of layer {layer} were not kept ({kept}); {HOW % (layer, layer)}")
    stored = {name: StoredArray(files, f"layers/{layer}/{name}") for name in _ARRAYS}
    query, key = stored["query_vector"], stored["key_vector"]
    num_heads = query.shape[0]
    if not 0 <= operator.index(head) < num_heads:
        raise IndexError(f"layer {layer} has no head {head}; its heads are 0 to {num_heads - 1}")
    first_query, first_key = int(facts["query_start"]), int(facts["key_start"])
    rows = _range("queries", queries, first_query, query.shape[1])
    columns = _range("keys", keys, first_key, key.shape[1])
    if max(rows[1] - rows[0], columns[1] - columns[0]) > MOST_TOKENS:
        raise UsageError(
            f"a window of {rows[1] - rows[0]:,} × {columns[1] - columns[0]:,} tokens; at most {MOST_TOKENS:,} × "
            f"{MOST_TOKENS:,} are exact at once, and `trace.pyramid` gives coarser views"
        )
    kv_head = head // (num_heads // key.shape[0])
    q = query.read((head, head + 1), rows, (0, query.shape[2]))[0].astype(np.float64)
    k = key.read((kv_head, kv_head + 1), columns, (0, key.shape[2]))[0].astype(np.float64)
    position = np.arange(*columns) + first_key
    with np.errstate(invalid="ignore", over="ignore"):
        logits = (q @ k.T) * float(facts["scale"])
        if facts["softcap"] is not None:
            logits = np.tanh(logits / facts["softcap"]) * facts["softcap"]
        if facts["alibi_slope"] is not None:
            at = np.arange(*rows) + first_query
            logits -= facts["alibi_slope"][head] * np.abs(at[:, None] - position)
        # Traces that were written before there was such a bias do not say that they have none.
        if facts.get("distance_bias") is not None:
            table = np.asarray(facts["distance_bias"][head], np.float64)
            distance = np.arange(*rows)[:, None] + first_query - position - int(facts["distance_bias_start"])
            logits += table[np.clip(distance, 0, len(table) - 1)]
        first, stop = (stored[name].read(rows)[:, None] for name in ("first_key", "stop_key"))
        visible = (position >= first) & (position < stop) & stored["key_visible"].read(columns)
        log_sum_exp = stored["log_sum_exp"].read((head, head + 1), rows)[0].astype(np.float64)
        exponent = np.where(visible, logits - log_sum_exp[:, None], -np.inf)
        probability: np.ndarray[Any, Any] = np.exp(exponent).astype(np.float32)
    # A query that is not finite makes the whole of its row so, as it does in the model; a key its column.
    return probability


_ARRAYS: Final = ("query_vector", "key_vector", "log_sum_exp", "first_key", "stop_key", "key_visible")


def _range(what: str, asked: slice, first: int, size: int) -> tuple[int, int]:
    """Return a slice of positions as a range of indices."""
    if not isinstance(asked, slice) or asked.step not in (None, 1):
        raise UsageError(f"{what} must be a slice of consecutive positions, not {asked!r}")
    start = first if asked.start is None else operator.index(asked.start)
    stop = first + size if asked.stop is None else operator.index(asked.stop)
    if not first <= start <= stop <= first + size:
        raise IndexError(f"{what} {start}:{stop} lie outside of the prompt; valid positions are {first}:{first + size}")
    return start - first, stop - first

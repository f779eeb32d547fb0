"""The numbers behind one picture of a head's attention: exact where that can be, else the finest level that fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from probe.dashboard.attention_map.view import Range, View
from probe.errors import MissingStatistic, UsageError
from probe.storage.trace_store import Trace
from probe.storage.window import MOST_TOKENS

MOST_CELLS: Final = 1024
"""Rows and columns of a picture, at most: a browser draws no more in time."""

AUTO_CELLS: Final = 256
"""Rows and columns that are chosen where nobody asks for finer ones: as fast at any length."""

NUM_SINK: Final = 4
"""First keys, which the sink lies in."""


@dataclass(frozen=True)
class Picture:
    """Cells of one head's attention, and what they are in words."""

    values: np.ndarray[Any, Any]
    """float32 `[query_block key_block]`; NaN or infinity where queries or keys were not finite."""
    queries: Range
    """Positions of the queries that the rows cover."""
    keys: Range
    """Positions of the keys that the columns cover."""
    cell_tokens: int
    """Positions along the side of a cell."""
    exact: bool
    """Whether the cells come from queries and keys, not from a stored map."""
    words: str
    """Which level this is, and how many tokens a cell covers."""
    notes: tuple[str, ...] = ()
    """What else a reader must know."""


def chosen(trace: Trace, view: View) -> View:
    """Return the view with its layer filled in, held against what the trace has.

    Raises UsageError naming the layers, heads or positions that there are; MissingStatistic where there are none.
    """
    if not trace.heads:
        raise MissingStatistic(f"nothing by head was captured in the unit {trace.unit!r}. {_HOW.format(layer=0)}")
    layer = next(iter(trace.heads)) if view.layer is None else view.layer
    if layer not in trace.heads:
        raise UsageError(f"there is no layer {layer} in this trace; there are {_listed(list(trace.heads))}")
    if view.head >= trace.heads[layer]:
        raise UsageError(f"layer {layer} has no head {view.head}; its heads are 0 to {trace.heads[layer] - 1}")
    for name, asked in (("queries", view.queries), ("keys", view.keys)):
        if asked is not None and asked[1] > trace.num_queries:
            raise UsageError(f"{name} {asked[0]}-{asked[1]} lie outside of the prompt; it ends at {trace.num_queries}")
    return replace(view, layer=layer)


def picture(trace: Trace, view: View) -> Picture:
    """Return what the view shows. Raises as `chosen` does, and MissingStatistic where there is nothing to draw."""
    view = chosen(trace, view)
    whole = (0, trace.num_queries)
    queries, keys = view.queries or whole, view.keys or whole
    size = max(queries[1] - queries[0], keys[1] - keys[0])
    kept = str(view.layer) in trace.attention
    finest = _finest_exact(size)
    if kept and size <= MOST_TOKENS and (view.cell_tokens is None or view.cell_tokens <= finest):
        found = _exact(trace, view, queries, keys, finest)
    else:
        found = _pooled(trace, view, queries, keys, kept)
    return found if view.sink else _without_sink(found)


def _exact(trace: Trace, view: View, queries: Range, keys: Range, tokens: int) -> Picture:
    assert view.layer is not None
    values = trace.window(view.layer, view.head, queries=slice(*queries), keys=slice(*keys))
    if tokens == 1:
        words = "Exact probabilities, from the stored queries and keys. One cell is 1 query × 1 key."
        return Picture(values, queries, keys, 1, True, words)
    covers = f"One cell covers {tokens} × {tokens} tokens: {_WHAT[view.which]}."
    words = f"Exact, from the stored queries and keys. {covers}"
    notes = (f"Zoom in to {MOST_CELLS:,} tokens or fewer to see single ones.",)
    return Picture(_merged(values, tokens, view.which), queries, keys, tokens, True, words, notes)


def _pooled(trace: Trace, view: View, queries: Range, keys: Range, kept: bool) -> Picture:
    assert view.layer is not None
    try:
        sizes = trace.levels(view.layer)
    except MissingStatistic as error:
        if kept:
            raise MissingStatistic(
                f"no attention map of layer {view.layer} was captured, but its queries and keys were: choose at most "
                f"{MOST_TOKENS:,} queries and keys (for instance the last ones) to see them exactly"
            ) from error
        raise MissingStatistic(
            f"no attention map of layer {view.layer} was captured. {_HOW.format(layer=view.layer)}"
        ) from error
    cells = {tokens: max(_num_blocks(queries, tokens), _num_blocks(keys, tokens)) for tokens in sizes}
    fitting = [tokens for tokens in sizes if cells[tokens] <= AUTO_CELLS] or [sizes[-1]]
    tokens, notes = fitting[0], []
    if view.cell_tokens is not None and view.cell_tokens != tokens:
        possible = [tokens for tokens in sizes if cells[tokens] <= MOST_CELLS] or [sizes[-1]]
        tokens = min(possible, key=lambda each: abs(np.log2(each / max(1, view.cell_tokens or 1))))
        if tokens != view.cell_tokens:
            notes.append(f"Cells of {view.cell_tokens:,} tokens are not stored, or too many for one picture.")
    if kept:
        notes.append(f"Zoom in to {MOST_TOKENS:,} × {MOST_TOKENS:,} tokens or fewer for exact probabilities.")
    elif tokens == sizes[0]:
        notes.append(
            f"Nothing finer is stored: queries and keys of layer {view.layer} were not kept. To zoom to single tokens, "
            f"capture: {{queries_and_keys: [{view.layer}]}}."
        )
    level = sizes.index(tokens)
    # A map covers whole blocks, of which the last may reach beyond the prompt.
    read = trace.pyramid(view.layer, view.head, level, queries=slice(*queries), keys=slice(*keys))
    values = read[view.which].values
    ranges = [
        (int(read[dim].values[0]), min(int(read[dim].values[-1]) + tokens, trace.num_queries))
        for dim in ("query_block", "key_block")
    ]
    finest = "the finest stored" if level == 0 else f"the finest stored has {sizes[0]:,}"
    covers = f"One cell covers {tokens:,} × {tokens:,} tokens: {_WHAT[view.which]}."
    words = f"Pooled level of {tokens:,} tokens ({finest}). {covers}"
    return Picture(values, ranges[0], ranges[1], tokens, False, words, tuple(notes))


def _without_sink(found: Picture) -> Picture:
    start, tokens = found.keys[0], found.cell_tokens
    columns = -(-(NUM_SINK - start) // tokens) if start < NUM_SINK else 0
    if columns <= 0:
        return found
    values = found.values.copy()
    values[:, :columns] = 0
    last = min(start + columns * tokens, found.keys[1]) - 1
    said = f"Keys {start:,} to {last:,} are left out, as the sink (the first {NUM_SINK} keys) lies in them."
    return replace(found, values=values, notes=(*found.notes, said))


def _merged(values: np.ndarray[Any, Any], tokens: int, which: str) -> np.ndarray[Any, Any]:
    """Return cells of `tokens` × `tokens`: over its queries the mean of what goes to its keys, or the largest."""
    rows, columns = (np.arange(0, size, tokens) for size in values.shape)
    if which == "max":
        return np.asarray(np.maximum.reduceat(np.maximum.reduceat(values, rows, axis=0), columns, axis=1))
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.float64), rows, axis=0), columns, axis=1)
    count = np.diff(np.append(rows, values.shape[0]))
    return np.asarray(sums / count[:, None], np.float32)


def _finest_exact(size: int) -> int:
    tokens = 1
    while -(-size // tokens) > MOST_CELLS:
        tokens *= 2
    return tokens


def _num_blocks(positions: Range, tokens: int) -> int:
    return -(-positions[1] // tokens) - positions[0] // tokens


def _listed(numbers: list[int]) -> str:
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


_WHAT: Final = {
    "mean": "the mean over its queries of what they give to its keys",
    "max": "the largest probability in it",
}

_HOW: Final = (
    "To see it, capture attention_map (a casebook's capture, or probe.trace(…, statistics=['attention_map'], "
    "queries_and_keys=[{layer}]) for single tokens)"
)

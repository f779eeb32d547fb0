"""The numbers behind one picture of a head's attention: exact where that can be, else the finest level that fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from probe.errors import MissingStatistic, UsageError
from probe.storage.window import MOST_TOKENS

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Range = tuple[int, int]
"""Half-open range of positions."""

Which = Literal["mean", "max"]
"""What a cell of many tokens shows."""

MOST_CELLS: Final = 896
"""Rows and columns of a picture, at most: with what belongs to it no more fits into 1.5 MB of text."""

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
    which: Which = "mean"
    """What a cell of many tokens holds."""

    def by_key(self) -> np.ndarray[Any, Any]:
        """Return, for each column, what its keys get: the mean over the shown queries, or the largest probability.

        float64 `[key_block]`, probability; a query that cannot see the keys counts as giving them nothing.
        """
        if self.which == "max":
            return np.asarray(self.values.max(0), np.float64)
        starts = np.arange(*self.queries, self.cell_tokens)
        count = np.minimum(starts + self.cell_tokens, self.queries[1]) - starts
        return np.asarray(count @ self.values.astype(np.float64) / count.sum())

    def by_query(self) -> np.ndarray[Any, Any]:
        """Return, for each row, what its queries give to all shown keys (their mean), or the largest probability.

        float64 `[query_block]`, probability.
        """
        if self.which == "max":
            return np.asarray(self.values.max(1), np.float64)
        return np.asarray(self.values.sum(1, dtype=np.float64))


def attention_picture(
    trace: Trace,
    layer: int,
    head: int,
    *,
    queries: Range | None = None,
    keys: Range | None = None,
    which: Which = "mean",
    cell_tokens: int | None = None,
    sink: bool = True,
) -> Picture:
    """Return one head's attention over ranges of positions (None: the whole prompt), at most 896 × 896 cells.

    From the stored queries and keys up to 2,048 × 2,048 tokens, else from the stored map: the level of `cell_tokens`,
    or the finest of at most 256 × 256 cells. Without `sink` the first 4 keys are left out. Raises UsageError naming the
    layers, heads or positions that there are; MissingStatistic where there is nothing to draw.
    """
    whole = (0, trace.num_queries)
    asked = _Asked(layer, head, queries or whole, keys or whole, which, cell_tokens)
    _check(trace, asked)
    size = max(stop - start for start, stop in (asked.queries, asked.keys))
    kept = str(layer) in trace.kept_layers
    finest = _finest_exact(size)
    if kept and size <= MOST_TOKENS and (cell_tokens is None or cell_tokens <= finest):
        found = _exact(trace, asked, finest)
    else:
        found = _pooled(trace, asked, kept)
    return found if sink else _without_sink(found)


@dataclass(frozen=True)
class _Asked:
    layer: int
    head: int
    queries: Range
    keys: Range
    which: Which
    cell_tokens: int | None


def _check(trace: Trace, asked: _Asked) -> None:
    if not trace.heads:
        raise MissingStatistic(f"nothing by head was captured in the unit {trace.unit!r}. {_HOW.format(layer=0)}")
    if asked.layer not in trace.heads:
        raise UsageError(f"there is no layer {asked.layer} in this trace; there are {_listed(list(trace.heads))}")
    if not 0 <= asked.head < trace.heads[asked.layer]:
        last = trace.heads[asked.layer] - 1
        raise UsageError(f"layer {asked.layer} has no head {asked.head}; its heads are 0 to {last}")
    for name, (start, stop) in (("queries", asked.queries), ("keys", asked.keys)):
        if not 0 <= start < stop <= trace.num_queries:
            raise UsageError(f"{name} {start}-{stop} lie outside of the prompt; it ends at {trace.num_queries}")


def _exact(trace: Trace, asked: _Asked, tokens: int) -> Picture:
    queries, keys, which = asked.queries, asked.keys, asked.which
    values = trace.window(asked.layer, asked.head, queries=slice(*queries), keys=slice(*keys))
    if tokens == 1:
        words = "Exact probabilities, from the stored queries and keys. One cell is 1 query × 1 key."
        return Picture(values, queries, keys, 1, True, words, which=which)
    covers = f"One cell covers {tokens} × {tokens} tokens: {_WHAT[which]}."
    words = f"Exact, from the stored queries and keys. {covers}"
    notes = (f"Zoom in to {MOST_CELLS:,} tokens or fewer to see single ones.",)
    return Picture(_merged(values, tokens, which), queries, keys, tokens, True, words, notes, which)


def _pooled(trace: Trace, asked: _Asked, kept: bool) -> Picture:
    queries, keys, which, wished = asked.queries, asked.keys, asked.which, asked.cell_tokens
    try:
        sizes = trace.levels(asked.layer)
    except MissingStatistic as error:
        if kept:
            raise MissingStatistic(
                f"no attention map of layer {asked.layer} was captured, but its queries and keys were: choose at most "
                f"{MOST_TOKENS:,} queries and keys (for instance the last ones) to see them exactly"
            ) from error
        raise MissingStatistic(
            f"no attention map of layer {asked.layer} was captured. {_HOW.format(layer=asked.layer)}"
        ) from error
    cells = {tokens: max(_num_blocks(queries, tokens), _num_blocks(keys, tokens)) for tokens in sizes}
    fitting = [tokens for tokens in sizes if cells[tokens] <= AUTO_CELLS] or [sizes[-1]]
    tokens, notes = fitting[0], []
    if wished is not None and wished != tokens:
        possible = [tokens for tokens in sizes if cells[tokens] <= MOST_CELLS] or [sizes[-1]]
        tokens = min(possible, key=lambda each: abs(np.log2(each / max(1, wished or 1))))
        if tokens != wished:
            notes.append(f"Cells of {wished:,} tokens are not stored, or too many for one picture.")
    if kept:
        notes.append(f"Zoom in to {MOST_TOKENS:,} × {MOST_TOKENS:,} tokens or fewer for exact probabilities.")
    elif tokens == sizes[0]:
        notes.append(
            f"Nothing finer is stored: queries and keys of layer {asked.layer} were not kept. To zoom to single "
            f"tokens, capture: {{queries_and_keys: [{asked.layer}]}}."
        )
    level = sizes.index(tokens)
    # A map covers whole blocks, of which the last may reach beyond the prompt.
    read = trace.pyramid(asked.layer, asked.head, level, queries=slice(*queries), keys=slice(*keys))
    values = read[which].values
    ranges = [
        (int(read[dim].values[0]), min(int(read[dim].values[-1]) + tokens, trace.num_queries))
        for dim in ("query_block", "key_block")
    ]
    finest = "the finest stored" if level == 0 else f"the finest stored has {sizes[0]:,}"
    covers = f"One cell covers {tokens:,} × {tokens:,} tokens: {_WHAT[which]}."
    words = f"Pooled level of {tokens:,} tokens ({finest}). {covers}"
    return Picture(values, ranges[0], ranges[1], tokens, False, words, tuple(notes), which)


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
    return -(-size // MOST_CELLS)


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

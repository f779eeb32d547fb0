"""One number for each token of a prompt: what a key receives, what a query attends to, how badly it was predicted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.context_gain import context_gain
from probe.analyses.measures.query_attention import query_attention
from probe.errors import MissingStatistic, UsageError

if TYPE_CHECKING:
    import xarray as xr

    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

By = Literal["received_mass", "query", "loss", "context_gain"]


@dataclass(frozen=True)
class TokenValues:
    """A number for each token, and what it is."""

    name: str
    """What the numbers are called: `received mass`, `loss`."""
    unit: str
    values: Floats
    """`[token]`, in the order of positions: the prompt, then what the model answered; NaN where there is none."""
    words: str
    """What a number is, how exact, and how many tokens share it."""
    answer: Floats
    """`[token]` of the right answer, which the model was given; NaN or empty where there is none."""
    block_tokens: int = 1
    """How many consecutive tokens share a number, because it was pooled; 1: each has its own."""

    def largest(self, count: int) -> list[tuple[int, float]]:
        """Return positions and values of the largest above 0, the largest first; of a pooled block its first token."""
        there = np.flatnonzero(np.isfinite(self.values) & (self.values > 0))
        there = there[there % self.block_tokens == 0] if self.block_tokens > 1 else there
        order = there[np.argsort(-self.values[there], kind="stable")][:count]
        return [(int(at), float(self.values[at])) for at in order]


def token_values(
    trace: Trace,
    by: By = "received_mass",
    *,
    layer: int | None = None,
    head: int | None = None,
    query: int | None = None,
    per_query: bool = False,
    shorter: Trace | None = None,
) -> TokenValues:
    """Return a number for each token of a trace's prompt and of what the model answered.

    `received_mass`: Σ_i p_ij that the key gets in a head of a layer, or with `head=None` summed over its heads;
    `per_query` divides it by the number of queries that can see the key. `query`: p_ij of one query, exact where
    queries and keys were kept, else what was captured of it, as `words` says. `loss`: −log p of the token given those
    before it, in nats. `context_gain`: loss of the same token after the `shorter` prompt (see `shorter_prompt`), less
    its loss here.

    Raises UsageError for a layer, head or query that there is not, MissingStatistic where it was not captured.
    """
    if by == "loss":
        return _loss(trace)
    if by == "context_gain":
        if shorter is None:
            raise UsageError("context_gain compares with the same words after a shorter prompt: give that trace")
        values, answer, words = context_gain(trace, shorter)
        return TokenValues("context gain", "nats", values, words, answer)
    if by not in ("received_mass", "query"):
        raise UsageError(f"tokens have no {by!r}; there are received_mass, query, loss, context_gain")
    if layer is None:
        raise UsageError(f"{by} wants a layer")
    if trace.heads.get(layer, 0) <= (head or 0):
        there = ", ".join(f"layer {at}: {count}" for at, count in trace.heads.items()) or "none"
        raise UsageError(f"there is no layer {layer} with a head {head or 0} in this trace; heads by layer: {there}")
    if by == "received_mass":
        return _received(trace, layer, head, per_query)
    if head is None or query is None:
        raise UsageError("what a query attends to wants a head and the position of the query")
    found = query_attention(trace, layer, head, query)
    nothing = np.full(len(trace.sample.answer_tokens), np.nan)
    return TokenValues("attention", "probability", found.values, found.words, nothing, found.block_tokens)


def num_positions(trace: Trace) -> int:
    """Return how many tokens the prompt and what the model answered have."""
    return len(trace.sample) + (0 if trace.outcome is None else len(trace.outcome.response_tokens))


def _received(trace: Trace, layer: int, head: int | None, per_query: bool) -> TokenValues:
    name = _received_name(trace, layer)
    array = trace[name].sel(layer=layer)
    heads = array.isel(head=slice(0, trace.heads[layer])) if head is None else array.isel(head=[head])
    mass = np.asarray(heads.transpose("head", ...).to_numpy(), np.float64).sum(0)
    whose = f"head {head} of layer {layer}" if head is not None else f"all {heads.sizes['head']} heads of layer {layer}"
    words = f"Σ of the attention that a token gets in {whose}, over all queries"
    horizon = name.removeprefix("received_mass").removeprefix("_horizon_")
    words += f" before position {int(horizon):,}" if horizon else ""
    if per_query:
        seen = np.asarray(trace[f"{name}_num_queries"].sel(layer=layer).to_numpy(), np.float64)
        mass = np.divide(mass, seen, out=np.full(mass.shape, np.nan), where=seen > 0)
        words += ", over the number of those queries that can see it"
    values, block = _spread(trace, array, mass, "key")
    if not np.isfinite(values).any():
        raise _not_received(trace, layer)
    words += f"; a mean over blocks of {block:,} tokens, as stored" if block > 1 else ""
    nothing = np.full(len(trace.sample.answer_tokens), np.nan)
    title = "received mass per query" if per_query else "received mass"
    return TokenValues(title, "probability", values, f"{words}.", nothing, block)


def _received_name(trace: Trace, layer: int) -> str:
    """Return the array that holds what each key receives: over all queries, else over the most."""
    found = {}
    for name in trace:
        match = re.fullmatch(r"received_mass(?:_horizon_([0-9]+))?", name)
        if match is not None and layer in trace[name]["layer"].values:
            found[np.inf if match[1] is None else float(match[1])] = name
    if not found:
        raise _not_received(trace, layer)
    return found[max(found)]


def _not_received(trace: Trace, layer: int) -> MissingStatistic:
    return MissingStatistic(
        f"what each token receives was not captured in layer {layer} of the unit {trace.unit!r}. To see it, capture "
        "received_mass (a casebook's capture, or probe.trace(…, statistics=['received_mass']))"
    )


def _loss(trace: Trace) -> TokenValues:
    answer = np.full(len(trace.sample.answer_tokens), np.nan)
    given = () if trace.outcome is None else trace.outcome.answer_log_probability
    answer[: len(given)] = -np.array(given[: len(answer)], np.float64)
    values, block, words = np.full(num_positions(trace), np.nan), 1, []
    if "loss" in trace:
        array = trace["loss"]
        values, block = _spread(trace, array, array.to_numpy().astype(np.float64), "token")
        shared = f" (a mean over blocks of {block:,} tokens, as stored)" if block > 1 else ""
        words.append(f"−log p of each token given those before it, in nats{shared}")
    else:
        words.append("the loss of the prompt's tokens was not captured: statistics=['loss']")
    if np.isfinite(answer).any():
        words.append("of the right answer's tokens that of the answer, which the model was given")
    if not (np.isfinite(values).any() or np.isfinite(answer).any()):
        raise MissingStatistic(
            f"no loss was captured in the unit {trace.unit!r}. To see it, capture loss (a casebook's capture, or "
            "probe.trace(…, statistics=['loss']))"
        )
    said = "; ".join(words)
    return TokenValues("loss", "nats", values, f"{said[0].upper()}{said[1:]}.", answer, block)


def _spread(trace: Trace, array: xr.DataArray, along: Floats, axis: str) -> tuple[Floats, int]:
    """Return values along an axis of positions or of blocks by position, and the size of a block."""
    pooled = f"{axis}_block" in array.dims
    dim = f"{axis}_block" if pooled else axis
    starts = np.asarray(array[dim].to_numpy() if dim in array.coords else np.arange(along.size), np.int64)
    block = int(array.attrs["block_tokens"]) if pooled and "block_tokens" in array.attrs else 1
    values = np.full(num_positions(trace), np.nan)
    # What was seen ends within the last block.
    seen = max(trace.num_queries, len(trace.sample)) if axis == "key" else values.size
    stops = np.minimum(starts + block, min(seen, values.size))
    counts = np.maximum(stops - starts, 0)
    if counts.sum():
        at = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        values[at] = np.repeat(along, counts)
    return values, block

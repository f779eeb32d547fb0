"""How spread each head's attention is near the end of a prompt, and how that goes with the prompt's length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from probe.intervals import percentiles, resamples
from probe.selection import LeftOut, fact, has_top_keys, largest_key, length, reads_the_text

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

NEAR_END = 8
"""The queries near the end are the last of so many equal parts of the prompt before its question."""


@dataclass(frozen=True)
class Spread:
    """How spread each head's attention is in one prompt, `[layer head]` each; NaN for a head that does not exist."""

    prompt: str
    """Name of the sample."""
    unit: str
    """The trace."""
    length: int
    """Length that was asked for, in tokens."""
    half: str
    """`find` or `test`."""
    normalised_entropy: Floats
    """Mean of H / ln(i + 1) over queries i near the end: 1 for uniform attention."""
    max_probability: Floats
    """Mean of the largest probability over those queries."""
    sharpening: Floats
    """Mean of p (ln p + H), p the largest probability: how fast it rises when logits are multiplied by more than 1."""
    uniform: float
    """Mean of 1 / (i + 1): the largest probability of uniform attention."""
    by_position: dict[int, Floats]
    """Normalised entropy over queries from 2^k up to 2^(k + 1), by the first of them."""
    at_answer: Floats | None
    """Mean largest probability over the steps that produce the answer; None without `top_keys`."""


def spreads(traces: Sequence[Trace], left_out: LeftOut) -> Iterator[Spread]:
    """Yield what each trace with `entropy` and `max_probability` shows; others are counted.

    Blocks of queries stand for their mean. Where samples are not halved, every second of a length is for testing.
    """
    halved = any(fact(trace, "half") is not None for trace in traces)
    seen: dict[int, int] = {}
    for trace in traces:
        if "entropy" not in trace or "max_probability" not in trace or not reads_the_text(trace):
            left_out.add("entropy and largest probability were not captured")
            continue
        at = length(trace)
        seen[at] = seen.get(at, -1) + 1
        half = str(fact(trace, "half")) if halved else ("find", "test")[seen[at] % 2]
        spread = _spread(trace, at, half)
        if spread is None:
            left_out.add("the prompt is shorter than 16 tokens")
            continue
        yield spread


def _spread(trace: Trace, at: int, half: str) -> Spread | None:
    num_tokens = len(trace.sample)
    if num_tokens < 16:
        return None
    entropy, position = _by_query(trace, "entropy")
    largest, _ = _by_query(trace, "max_probability")
    # The prompt's queries alone, without those of the answer; query 0 sees one key, whose entropy says nothing.
    inside = (position >= 1) & (position < num_tokens)
    entropy, largest, position = entropy[..., inside], largest[..., inside], position[inside]
    share = entropy / np.log(position + 1)
    # A question has as many tokens in a short prompt as in a long one: with it the mix would go with the length.
    stop = min((s.start for s in trace.sample.spans if s.name == "question" and s.start > 1), default=num_tokens)
    end = (position >= stop - max(1, stop // NEAR_END)) & (position < stop)
    if not end.any():
        end[np.flatnonzero(position < stop)[-1:]] = True
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(largest > 0, largest * (np.log(largest) + entropy), 0.0)
    first = [1 << k for k in range(int(np.log2(num_tokens)) + 1)]
    classes = {low: (position >= low) & (position < 2 * low) for low in first}
    return Spread(
        prompt=trace.sample.name,
        unit=trace.unit,
        length=at,
        half=half,
        normalised_entropy=share[..., end].mean(-1),
        max_probability=largest[..., end].mean(-1),
        sharpening=gain[..., end].mean(-1),
        uniform=float((1 / (position[end] + 1)).mean()),
        by_position={low: share[..., held].mean(-1) for low, held in classes.items() if held.any()},
        at_answer=_at_answer(trace),
    )


def _by_query(trace: Trace, name: str) -> tuple[Floats, Floats]:
    """Return a statistic `[layer head query]` and the queries' positions, the middle of the block where pooled."""
    array = trace[name]
    [dim] = [str(dim) for dim in array.dims if str(dim).startswith("query")]
    values = array.transpose("layer", "head", dim).to_numpy().astype(np.float64)
    if dim in array.coords:
        position = array[dim].to_numpy().astype(np.float64)
    else:
        position = np.arange(values.shape[-1], dtype=np.float64)
    if dim != "query" and len(position) > 1:
        position = position + (position[1] - position[0] - 1) / 2
    return values, position


def _at_answer(trace: Trace) -> Floats | None:
    if not has_top_keys(trace):
        return None
    probability, _ = largest_key(trace)
    steps = max(1, len(trace.sample.answer_tokens))
    if probability.shape[-1] == 0:
        return None
    return np.asarray(probability[..., :steps].astype(np.float64).mean(-1), np.float64)


def slopes(values: Floats, lengths: Sequence[int]) -> tuple[Floats, Floats]:
    """Return the least-squares slope per doubling of the length, and its standard error, of `values [prompt …]`."""
    x = np.log2(np.asarray(lengths, np.float64))
    x = x - x.mean()
    spread = float((x**2).sum())
    slope = np.tensordot(x, values, axes=(0, 0)) / spread
    fitted = values.mean(axis=0) + np.multiply.outer(x, slope)
    residual = ((values - fitted) ** 2).sum(axis=0) / max(len(x) - 2, 1)
    return slope, np.sqrt(residual / spread)


def falling(values: Floats, lengths: Sequence[int], margin: float) -> Floats:
    """Return the one-sided p-values, Student's, that slopes of `values [prompt …]` are no steeper than `-margin`."""
    slope, error = slopes(values, lengths)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (slope + margin) / error
    t = np.where(error > 0, t, np.where(slope < -margin, -np.inf, np.inf))
    return np.asarray(stats.t.cdf(t, max(len(lengths) - 2, 1)), np.float64)


def slope_ends(values: Floats, lengths: Sequence[int], *, seed: int) -> tuple[float, float]:
    """Return both ends of the bootstrap interval of the slope of `values [prompt]`, drawing prompts within lengths."""
    at = np.asarray(lengths)
    groups = [np.flatnonzero(at == each) for each in np.unique(at)]
    x = np.log2(at.astype(np.float64))
    weight = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    drawn = np.zeros(1)
    for index, group in enumerate(groups):
        # Resampled values spread by (n - 1) / n of what new prompts would.
        wider = (len(group) / (len(group) - 1)) ** 0.5 if len(group) > 1 else 1.0
        mean = values[group].mean()
        counts = resamples(len(group), seed=seed + index)
        drawn = drawn + weight[group[0]] * (len(group) * mean + wider * (counts @ (values[group] - mean)))
    low, high = percentiles(drawn)
    return float(low), float(high)

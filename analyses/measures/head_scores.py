"""Every head's copying scores over the prompts: how high, how sure, how steady, and how far past the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from probe.analyses.measures.copying import OFFSETS, Counting, Reading, p_values
from probe.finding import Interval, Measurement
from probe.intervals import by_cluster, mean_ends, resamples

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]
FALSE_DISCOVERIES: Final = 0.05
"""Most of the heads named that may, on average, copy no more than looking without reading gives."""
_SPLITS: Final = 200


@dataclass(frozen=True)
class HeadScores:
    """Every head's numbers over the prompts, `[layer head]` each."""

    mean: Floats
    """Mean score."""
    low: Floats
    high: Floats
    null: Floats
    """Mean score with each step given another step's token."""
    q: Floats
    """Benjamini-Hochberg's adjusted p, over all heads, of copying no more than looking without reading gives."""
    shift: NDArray[np.int64]
    """How many tokens past what is copied the head looks: the offset with its largest mean score."""
    shifted: Floats
    """The mean score at that offset."""
    shifted_q: Floats
    """As `q`, over all heads and offsets."""
    looks: Floats
    activation: Floats
    exists: NDArray[np.bool_]
    by_prompt: Floats
    """Scores, `[prompt layer head]`."""
    drawn: Floats
    """Mean scores of the heads that exist in each resample of the prompts, `[draw head]`."""
    null_drawn: Floats
    chance: float
    num_prompts: int
    num_traces: int
    above: tuple[tuple[int, int], ...]
    """Heads above the threshold, strongest first."""
    moved: tuple[tuple[int, int], ...]
    """Heads that copy so, looking some tokens past the source or before it, and do not copy by the criterion itself."""
    writes: Floats | None
    """What the head writes from the answer's place into the answer's logit over a distractor's, mean over rows and
    prompts; None where `span_logit` was not captured."""

    @property
    def num_heads(self) -> int:
        """How many heads there are."""
        return int(self.exists.sum())

    def interval(self, at: tuple[int, int]) -> Interval | None:
        """Return the interval of a head's score."""
        if self.num_prompts < 2:
            return None
        method = "BCa bootstrap over prompts; exact bound where all agree"
        return Interval(low=float(self.low[at]), high=float(self.high[at]), method=method)


def head_scores(
    readings: Sequence[Reading], traces: Sequence[Trace], span: str, threshold: float, counting: Counting, seed: int
) -> HeadScores:
    """Return every head's numbers from what it did in each trace."""
    prompts = [reading.prompt for reading in readings]
    score = by_cluster([reading.score for reading in readings], prompts)
    exists = np.any([reading.exists for reading in readings], axis=0)
    mean = score.mean(axis=0)
    most = 1.0 if counting == "set" else max(1.0, float(score.max()))
    low, high = mean_ends(score, bounds=(0.0, most), seed=seed)
    looked = [reading for reading in readings if np.isfinite(reading.null).all()]
    null, null_drawn = np.full(mean.shape, np.nan), np.empty((0, int(exists.sum())))
    if looked:
        per_prompt = by_cluster([reading.null for reading in looked], [reading.prompt for reading in looked])
        null, null_drawn = per_prompt.mean(axis=0), _drawn(per_prompt[:, exists], seed)
    above = _strongest_first((mean > threshold) & exists, mean)
    by_offset = by_cluster([reading.scores for reading in readings], prompts).mean(axis=0)
    p = p_values(readings)
    best = by_offset.argmax(axis=0)
    at_best = (best, *np.indices(mean.shape))
    shifted, shift = by_offset[at_best], np.asarray(OFFSETS)[best]
    shifted_q = _adjusted(p, np.broadcast_to(exists, p.shape))[at_best]
    moved = (shift != 0) & (shifted > threshold) & (shifted_q <= FALSE_DISCOVERIES) & (mean <= threshold) & exists
    return HeadScores(
        mean=mean,
        low=low,
        high=high,
        null=null,
        q=_adjusted(p[0], exists),
        shift=shift,
        shifted=shifted,
        shifted_q=shifted_q,
        looks=by_cluster([reading.looks for reading in readings], prompts).mean(axis=0),
        activation=(score > 0).mean(axis=0),
        exists=exists,
        by_prompt=score,
        drawn=_drawn(score[:, exists], seed),
        null_drawn=null_drawn,
        chance=float(np.mean([reading.chance for reading in readings])),
        num_prompts=len(score),
        num_traces=len(readings),
        above=above,
        moved=_strongest_first(moved, shifted),
        writes=_writes(traces, span, mean.shape),
    )


def _strongest_first(chosen: NDArray[np.bool_], score: Floats) -> tuple[tuple[int, int], ...]:
    order = sorted(np.argwhere(chosen).tolist(), key=lambda at: (-score[tuple(at)], at))
    return tuple((int(layer), int(head)) for layer, head in order)


def _drawn(by_prompt: Floats, seed: int) -> Floats:
    return np.asarray(resamples(len(by_prompt), seed=seed) @ by_prompt / len(by_prompt), np.float64)


def _adjusted(p: Floats, exists: NDArray[np.bool_]) -> Floats:
    adjusted = np.ones(p.shape)
    if exists.any():
        adjusted[exists] = stats.false_discovery_control(p[exists])
    return adjusted


def _writes(traces: Sequence[Trace], span: str, shape: tuple[int, ...]) -> Floats | None:
    found = []
    for trace in traces:
        if "span_logit" not in trace or span not in trace["span_logit"]["span"].to_numpy().tolist():
            continue
        array = trace["span_logit"].sel(span=span).transpose("layer", "head", "row").to_numpy().astype(np.float64)
        if array.shape[:2] == shape and array.shape[-1] and np.isfinite(array).all():
            found.append(array.mean(axis=-1))
    return np.mean(found, axis=0) if found else None


def steadiness(heads: HeadScores, seed: int) -> list[Measurement]:
    """Return how well two halves of the prompts agree on the heads' scores, and on which heads come first.

    Pearson's r over heads between the mean scores of two random halves, over 200 splits: their mean, and the range that
    holds 95 % of them. It is of half as many prompts as there are; Spearman and Brown's formula tells that of all. None
    where no head's score differs from another's.
    """
    scores = heads.by_prompt[:, heads.exists]
    n, top = len(scores), max(1, len(heads.above))
    if n < 4:
        return []
    generator = np.random.default_rng(seed)
    r, shared = [], []
    for _ in range(_SPLITS):
        order = generator.permutation(n)
        first, second = scores[order[: n // 2]].mean(axis=0), scores[order[n // 2 :]].mean(axis=0)
        if first.std() > 1e-12 and second.std() > 1e-12:
            r.append(float(np.corrcoef(first, second)[0, 1]))
            best = [set(np.argsort(-half, kind="stable")[:top].tolist()) for half in (first, second)]
            shared.append(100 * len(best[0] & best[1]) / top)
    if not r:
        return []
    mean = float(np.mean(r))
    whole = 2 * mean / (1 + mean) if mean > -1 else None

    def spread(values: list[float]) -> Interval:
        low, high = np.quantile(values, [0.025, 0.975])
        return Interval(low=float(low), high=float(high), method=f"{len(values)} random splits of the prompts")

    heads_of = f"of the {top} strongest heads" if len(heads.above) else "of the strongest head"
    return [
        Measurement(name="split-half correlation of the heads' scores", value=mean, interval=spread(r), n=n),
        Measurement(name="the same for all prompts, by Spearman and Brown", value=whole, n=n),
        Measurement(
            name=f"share {heads_of} that both halves name",
            value=float(np.mean(shared)),
            unit="%",
            interval=spread(shared),
            n=n,
        ),
    ]


def across_contexts(heads: HeadScores, contexts: Sequence[str]) -> Measurement | None:
    """Return the least correlation of the heads' scores between two kinds of contexts (lengths), None for one kind.

    `contexts` says of each prompt, in the order of `by_prompt`, what kind it is; kinds of fewer than two prompts are
    left out.
    """
    kinds = [kind for kind in sorted(set(contexts)) if list(contexts).count(kind) > 1]
    scores = heads.by_prompt[:, heads.exists]
    means = [scores[[each == kind for each in contexts]].mean(axis=0) for kind in kinds]
    means = [mean for mean in means if mean.std() > 1e-12]
    if len(means) < 2:
        return None
    least = float(np.min(np.corrcoef(np.stack(means))))
    name = f"least correlation of the heads' scores between {len(means)} lengths"
    return Measurement(name=name, value=least, n=heads.num_prompts)

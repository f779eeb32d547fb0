"""Attention over places at one relevance: primacy, recency and U, in units of the mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.attention_by_document import Documents, GoldAttention
from probe.analyses.measures.ends_and_middle import FEWEST_PLACES, NUMBERS, end_weights
from probe.analyses.measures.place_profile import both_ends
from probe.finding import Interval
from probe.intervals import FEWEST_PROMPTS, cluster_bootstrap

Floats = NDArray[np.float64]

DRAWS: Final = 999
"""Shuffles of places."""


@dataclass(frozen=True)
class AttentionProfile:
    """What equally relevant documents get by place, relative to their mean."""

    what: str
    """The documents, in words."""
    n: int
    """Prompts."""
    values: dict[str, float]
    """U, primacy and recency: the ends less the mean of the inner places; 1 is the mean over all."""
    intervals: dict[str, Interval]
    shuffled: Floats
    """The same with places shuffled, `[draw number]`."""
    by_place: tuple[tuple[float, float], ...]
    """Place and mean relative attention there, in order of the place."""

    @property
    def p_value(self) -> float:
        """That both ends lie above the middle, against shuffled places."""
        return both_ends(np.array([self.values[name] for name in NUMBERS]), self.shuffled)

    def at(self, place: float) -> float:
        """Return the relative attention at the place that is nearest."""
        return min(self.by_place, key=lambda each: abs(each[0] - place))[1]


def of_equal_documents(
    prompts: Sequence[Documents], what: str, keep: Callable[[Documents], NDArray[np.bool_]], seed: int
) -> AttentionProfile | None:
    """Return the profile of the documents that `keep` says are equally relevant, each prompt its own profile.

    None with fewer than five prompts of three such documents. Shuffled: the places of a prompt's own documents.
    """
    generator = np.random.default_rng([seed, 3])
    numbers, names, drawn = [], [], []
    seen: dict[float, list[float]] = {}
    for each in prompts:
        kept = keep(each) & np.isfinite(each.attention)
        places, attention = each.places[kept], each.attention[kept]
        if len(places) < FEWEST_PLACES or attention.mean() <= 0:
            continue
        relative = attention / attention.mean()
        weights = end_weights(len(places))
        numbers.append(weights @ relative)
        names.append(f"{each.prompt}/{each.turned}")
        drawn.append(generator.permuted(np.tile(relative, (DRAWS, 1)), axis=1) @ weights.T)
        for place, value in zip(places.round(6).tolist(), relative.tolist(), strict=True):
            seen.setdefault(place, []).append(value)
    if len(numbers) < FEWEST_PROMPTS:
        return None
    each_value = np.array(numbers)
    found = [cluster_bootstrap(each_value[:, index], names, seed=seed) for index in range(len(NUMBERS))]
    return AttentionProfile(
        what=what,
        n=len(each_value),
        values=dict(zip(NUMBERS, each_value.mean(axis=0).round(9).tolist(), strict=True)),
        intervals={name: each for name, each in zip(NUMBERS, found, strict=True) if each is not None},
        shuffled=np.mean(drawn, axis=0),
        by_place=tuple((place, float(np.mean(seen[place]))) for place in sorted(seen)),
    )


def of_the_gold(golds: Sequence[GoldAttention], seed: int) -> AttentionProfile | None:
    """Return the profile of the gold over its places, each prompt one place, lengths with three places averaged.

    None where no length has three places of two prompts each. Shuffled: places among the prompts of a length.
    """
    generator = np.random.default_rng([seed, 4])
    found, drawn, ends, used = [], [], [], 0
    seen: dict[float, list[float]] = {}
    for at in sorted({gold.length for gold in golds}):
        here = [gold for gold in golds if gold.length == at]
        value = np.array([gold.attention for gold in here])
        places, index = np.unique([gold.place for gold in here], return_inverse=True)
        counts = np.bincount(index)
        if len(places) < FEWEST_PLACES or counts.min() < 2 or value.mean() <= 0:
            continue
        relative, weights = value / value.mean(), end_weights(len(places))
        means = np.bincount(index, weights=relative) / counts
        known = [
            cluster_bootstrap(relative[index == p], [here[i].prompt for i in np.flatnonzero(index == p)], seed=seed)
            for p in range(len(places))
        ]
        low, high = (np.array([getattr(each, end) for each in known]) for end in ("low", "high"))
        down, up = np.where(weights > 0, means - low, high - means), np.where(weights > 0, high - means, means - low)
        found.append(weights @ means)
        ends.append([((weights * side) ** 2).sum(axis=1) for side in (down, up)])
        shuffled = [
            np.bincount(generator.permutation(index), weights=relative, minlength=len(places)) / counts
            for _ in range(DRAWS)
        ]
        drawn.append(np.array(shuffled) @ weights.T)
        used += len(here)
        for place, mean in zip(places.round(6).tolist(), means.tolist(), strict=True):
            seen.setdefault(place, []).append(mean)
    if not found:
        return None
    value = np.mean(found, axis=0).round(9)
    below, above = np.sqrt(np.sum(ends, axis=0)) / len(found)
    method = "square-and-add, from BCa of each place"
    return AttentionProfile(
        what="the gold",
        n=used,
        values=dict(zip(NUMBERS, value.tolist(), strict=True)),
        intervals={
            name: Interval(low=float(value[i] - below[i]), high=float(value[i] + above[i]), method=method)
            for i, name in enumerate(NUMBERS)
        },
        shuffled=np.mean(drawn, axis=0),
        by_place=tuple((place, float(np.mean(seen[place]))) for place in sorted(seen)),
    )

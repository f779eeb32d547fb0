"""Whether the gold document can be found by attention: as it is, and with the bias of its place taken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from probe.analyses.measures.attention_by_document import Documents, rank_correlation, rank_of_gold
from probe.finding import Measurement
from probe.intervals import clopper_pearson, cluster_bootstrap, paired_difference

SCORES: Final = ("raw", "subtracted", "divided")
"""A document's attention as it is, less the dummy's at its place, and divided by it."""
_RANKS: Final = (1, 3)


def _ranks(asked: Sequence[Documents], dummies: Sequence[Documents]) -> list[tuple[Documents, tuple[int, int, int]]]:
    """Return the gold's rank by each score, of the prompts that have a gold and a dummy prompt of their own."""
    same = {each.prompt: each.attention for each in dummies}
    found = []
    for each in asked:
        bias = same.get(each.prompt)
        if each.turned or each.gold is None or bias is None or len(bias) != len(each.attention):
            continue
        divided = np.divide(each.attention, bias, out=np.full(len(bias), np.nan), where=bias > 0)
        ranks = [rank_of_gold(score, each.gold) for score in (each.attention, each.attention - bias, divided)]
        if ranks[0] is not None and ranks[1] is not None and ranks[2] is not None:
            found.append((each, (ranks[0], ranks[1], ranks[2])))
    return found


def recalls(asked: Sequence[Documents], dummies: Sequence[Documents]) -> Iterator[Measurement]:
    """Yield Recall@1 and @3 by each score, with the gold at the ends and in the middle, and what calibration gains.

    The middle is the gold's place that lies nearest to it; the gain is paired, over every place but the ends.
    """
    ranked = _ranks(asked, dummies)
    if not ranked:
        return
    places = {round(_place(each), 6) for each, _ in ranked}
    middle = min(places, key=lambda place: (abs(place - 0.5), place))
    groups: dict[str, Callable[[float], bool]] = {
        "at the ends": lambda place: place in (0.0, 1.0),
        "in the middle": lambda place: place == middle and place not in (0.0, 1.0),
    }
    for where, inside in groups.items():
        here = [ranks for each, ranks in ranked if inside(round(_place(each), 6))]
        for most in _RANKS if here else ():
            for index, name in enumerate(SCORES):
                hits = sum(ranks[index] <= most for ranks in here)
                yield Measurement(
                    name=f"Recall@{most} of the gold, {name}, gold {where}",
                    value=hits / len(here),
                    interval=clopper_pearson(hits, len(here)),
                    n=len(here),
                )
    inner = [ranks for each, ranks in ranked if 0 < _place(each) < 1]
    for index, name in enumerate(SCORES[1:], start=1):
        first = [ranks[index] == 1 for ranks in inner]
        before = [ranks[0] == 1 for ranks in inner]
        gain = paired_difference(first, before)
        if gain is not None:
            yield Measurement(
                name=f"Recall@1 that is gained by the {name} score, gold at inner places",
                value=float(np.mean(first) - np.mean(before)),
                interval=gain,
                n=len(inner),
            )


def recalls_by_place(
    asked: Sequence[Documents], dummies: Sequence[Documents]
) -> dict[tuple[int, float], tuple[float, ...]]:
    """Return for each length and place of the gold Recall@1, then Recall@3, by each score."""
    groups: dict[tuple[int, float], list[tuple[int, int, int]]] = {}
    for each, ranks in _ranks(asked, dummies):
        groups.setdefault((each.length, round(_place(each), 4)), []).append(ranks)
    return {
        key: tuple(
            float(f"{np.mean([each[index] <= most for each in ranks]):.4g}") for most in _RANKS for index in range(3)
        )
        for key, ranks in groups.items()
    }


def _place(each: Documents) -> float:
    return float(each.places[each.gold]) if each.gold is not None else float("nan")


def correlations(asked: Sequence[Documents], seed: int) -> Iterator[Measurement]:
    """Yield the rank correlation of the additive and of the multiplicative model, mean over the prompts."""
    groups: dict[str, list[Documents]] = {}
    for each in asked:
        groups.setdefault(each.prompt, []).append(each)
    for logarithmic, name in ((False, "relevance + bias"), (True, "relevance × bias, on logarithms")):
        found = {
            prompt: value
            for prompt, turned in groups.items()
            if len(turned) > 1 and (value := rank_correlation(turned, logarithmic=logarithmic)) is not None
        }
        if found:
            values = [value for value, _ in found.values()]
            yield Measurement(
                name=f"rank correlation of leads at two places ({name}), {sum(n for _, n in found.values()):,} "
                "quadruplets",
                value=float(np.mean(values)),
                interval=cluster_bootstrap(values, list(found), bounds=(-1.0, 1.0), seed=seed),
                n=len(values),
            )


def by_attention(asked: Sequence[Documents]) -> Iterator[Measurement]:
    """Yield the share of right answers where the gold has the most attention, and where another document has."""
    known = [
        (rank == 1, bool(each.correct))
        for each in asked
        if each.turned == 0
        and each.gold is not None
        and each.correct is not None
        and (rank := rank_of_gold(each.attention, each.gold)) is not None
    ]
    for ahead, name in ((True, "the gold has"), (False, "another document has")):
        right = [correct for first, correct in known if first is ahead]
        if right:
            yield Measurement(
                name=f"right answers where {name} the most attention per token",
                value=float(np.mean(right)),
                interval=clopper_pearson(sum(right), len(right)),
                n=len(right),
            )

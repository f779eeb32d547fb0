"""Where the gold document ranks by attention: as it is, and with the bias of its place taken off in either form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.attention_by_document import Documents, rank_of_gold
from probe.selection import LeftOut

Floats = NDArray[np.float64]

SHUFFLES: Final = 499
"""Times that dummies' attention is put at other places."""
FORMS: Final = ("subtract", "divide")


@dataclass(frozen=True)
class RankedGold:
    """One prompt whose gold document was ranked among the others, from 1; a tie counts against it."""

    prompt: str
    unit: str
    length: int
    place: float
    """Of the gold, from 0 (first) to 1 (last)."""
    number: int
    """Documents."""
    raw: int
    subtract: int
    divide: int
    shuffled: NDArray[np.int64]
    """Its rank with dummies' attention at other places, `[draw]`, in the form that was asked for."""

    @property
    def inner(self) -> bool:
        """Whether the gold stands neither first nor last."""
        return 0.0 < self.place < 1.0


def ranked_golds(
    asked: Sequence[Documents], dummies: Sequence[Documents], form: str, seed: int, left_out: LeftOut
) -> list[RankedGold]:
    """Return the gold's ranks in each prompt that was read as it is written.

    The dummies of a prompt are those of its own name where they were read, else the mean of all of its length and
    number of documents. Shuffled: the same dummies at places drawn anew, each draw the same for all prompts.
    """
    own = {each.prompt: each.attention for each in dummies}
    alike: dict[tuple[int, int], list[Floats]] = {}
    for each in dummies:
        alike.setdefault((each.length, len(each.attention)), []).append(each.attention)
    orders: dict[int, NDArray[np.int64]] = {}
    found = []
    for each in asked:
        number = len(each.attention)
        bias = own.get(each.prompt)
        if bias is None or len(bias) != number:
            same = alike.get((each.length, number))
            bias = None if same is None else np.mean(same, axis=0)
        if each.gold is None or each.turned:
            continue
        if bias is None:
            left_out.add("no dummies were read at this length with as many documents")
            continue
        if number not in orders:
            generator = np.random.default_rng([seed, number])
            orders[number] = np.argsort(generator.random((SHUFFLES, number)), axis=1)
        raw = rank_of_gold(each.attention, each.gold)
        subtract, divide = (rank_of_gold(calibrated(each.attention, bias, kind), each.gold) for kind in FORMS)
        if raw is None or subtract is None or divide is None:
            left_out.add("the gold stands where a sink does, or its dummy gets nothing")
            continue
        found.append(
            RankedGold(
                prompt=each.prompt,
                unit=each.unit,
                length=each.length,
                place=round(float(each.places[each.gold]), 4),
                number=number,
                raw=raw,
                subtract=subtract,
                divide=divide,
                shuffled=_ranks(calibrated(each.attention, bias[orders[number]], form), each.gold),
            )
        )
    return found


def calibrated(attention: Floats, bias: Floats, form: str) -> Floats:
    """Return attention less, or over, what dummies get, of `[… document]`; NaN where there is nothing to divide by."""
    if form == "subtract":
        return attention - bias
    known = np.broadcast_to(attention, np.broadcast_shapes(attention.shape, bias.shape))
    divided: Floats = np.divide(known, bias, out=np.full(known.shape, np.nan), where=bias > 0)
    return divided


def _ranks(scores: Floats, gold: int) -> NDArray[np.int64]:
    """Return the gold's rank in each row; documents without a score are no rivals, a gold without one is last."""
    own = scores[:, [gold]]
    ahead = (scores >= own).sum(axis=1)
    ranks: NDArray[np.int64] = np.where(np.isfinite(own[:, 0]), ahead, scores.shape[1]).astype(np.int64)
    return ranks

"""What a recurrent model does beyond its training length: whether it fails, certainly does not, or cannot be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from probe.analyses.figures.lengths import Rate
from probe.analyses.measures.loss_beyond import LossRise
from probe.analyses.measures.recall_by_age import Fall, Recall
from probe.finding import Comparison, Interval
from probe.intervals import p_text

ABLE = 0.5
"""Share of recent answers that must certainly be right where they should be, for a fall to mean anything."""


@dataclass(frozen=True)
class Behaviour:
    """How the model behaves beyond its training length."""

    fails: bool
    """Whether it falls by more than the margin, and not by chance."""
    holds: bool
    """Whether it certainly falls by less than the margin."""
    text: str
    """Both numbers in a clause; empty where nothing was measured."""
    comparison: Comparison | None
    """The test, whole texts less what they are compared with; None where nothing was measured."""
    reason: str
    """What is missing where it neither fails nor holds."""


def of_recall(compared: Fall, trained: int, margin: float) -> Behaviour:
    """Judge the recall of answers at most a training length old."""
    whole, known = compared.whole, compared.known
    able = known.interval.low > ABLE
    where = "from the same texts' ends alone" if compared.paired else "in texts within that length"
    n = f"n = {whole.n}" if compared.paired else f"n = {whole.n} and {known.n}"
    test = "exact McNemar test, paired by sample" if compared.paired else "Fisher's exact test"
    if able:
        needed = int(np.ceil(np.log(0.025) / np.log1p(-margin)))
        reason = f"To say that recall falls by less than {margin:.0%}, at least {needed} such prompts are needed."
    else:
        reason = f"The model cannot be shown to recall what is recent {where}: {_share(known)} right."
    return Behaviour(
        fails=able and compared.p_value < 0.05 and compared.value > margin,
        holds=able and compared.interval.high < margin,
        text=f"answers at most {trained:,} tokens old are right {_share(whole)} of the time in whole texts of twice "
        f"that length or more, {_share(known)} {where} ({p_text(compared.p_value)}, {n})",
        comparison=Comparison(
            name=f"recent answers right in whole long texts less {where}; {test}",
            difference=-compared.value,
            interval=_negated(compared.interval),
            p_value=compared.p_value,
            n=whole.n if compared.paired else whole.n + known.n,
        ),
        reason=reason,
    )


def of_loss(rise: LossRise | None, margin: float) -> Behaviour:
    """Judge the loss of a text's tokens, where nothing is asked."""
    if rise is None or rise.interval is None:
        missing = "Neither recent answers nor the loss beyond the training length were measured."
        return Behaviour(False, False, "", None, missing)
    return Behaviour(
        fails=rise.p_value < 0.05 and rise.value > margin,
        holds=rise.interval.high < margin,
        text=f"loss from twice that length on is {rise.value:+.2f} {rise.interval} nats a token off that before it "
        f"({p_text(rise.p_value)}, n = {rise.n})",
        comparison=Comparison(
            name="loss from twice the training length on less that of its second half, nats; one-sided paired t test",
            difference=rise.value,
            interval=rise.interval,
            p_value=rise.p_value,
            n=rise.n,
        ),
        reason=f"More texts would tell whether loss rises by {margin:g} nats.",
    )


def forgets(long: Sequence[Recall], trained: int) -> bool | None:
    """Return whether older answers are right less often than recent ones in long texts (one-sided Fisher test, .05).

    None where there are not both.
    """
    table = []
    for some in ([each for each in long if each.age <= trained], [each for each in long if each.age > trained]):
        right = sum(each.right for each in some)
        table.append([right, len(some) - right])
    if not all(sum(row) for row in table):
        return None
    return bool(stats.fisher_exact(np.array(table), alternative="greater").pvalue < 0.05)


def _share(rate: Rate) -> str:
    return f"{rate.share:.0%} [{rate.interval.low:.0%}, {rate.interval.high:.0%}]"


def _negated(interval: Interval) -> Interval:
    return interval.model_copy(update={"low": -interval.high, "high": -interval.low})

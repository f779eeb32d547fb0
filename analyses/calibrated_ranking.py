"""Whether the gold document is found by attention once the bias of its place is taken off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import JsonValue

from probe.analyses.figures.calibrated_ranking import ranking_figures
from probe.analyses.measures.attention_by_document import documents_of
from probe.analyses.measures.calibrated_ranks import FORMS, SHUFFLES, RankedGold, ranked_golds
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS, clopper_pearson, mcnemar_exact, p_text, paired_difference
from probe.selection import LeftOut, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Is the gold document found by attention once the bias of its place is taken off?"
SOURCE = (
    "Documents ranked by attention less a dummy's at the same place: Hsieh et al. 2024, Found in the Middle, arXiv "
    "2406.16008; dividing, dummies in one prompt, and the shuffled control: this toolkit's own"
)
Form = Literal["subtract", "divide"]
ALPHA = 0.01
"""Largest p-value that supports a gain."""
_COLUMNS = (
    "length_tokens", "place", "num_prompts", "recall_raw", "recall_subtract", "recall_divide",
    "gain", "gain_low", "gain_high",
)  # fmt: skip


@analysis(question=QUESTION, source=SOURCE, needs={"span_mass": {}})
def calibrated_ranking(
    run: Run | Trace | Iterable[Trace],
    *,
    form: Form = "subtract",
    most: int = 3,
    heads: Sequence[Sequence[int]] | None = None,
    sink_tokens: int = 4,
    margin: float = 10.0,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Rank documents by attention and by calibrated attention, and compare how often the gold is among the first.

    A document's attention is the mean over its tokens of what the row that produces the first answer token gives them,
    over all layers and heads or over `heads`. Calibrated: less what a dummy gets at its place (`given: all_dummies`,
    the prompt's own or else the mean of its length), or divided by it. Recall@`most` is the share of prompts in which
    the gold is among the first `most`.

    Supported: with the gold at inner places recall gains by `form`, paired by prompt, with p < 0.01 (McNemar, exact),
    and more than with the dummies' attention at shuffled places (p < 0.01). Refuted: it gains at most `margin` points
    with 97.5 % certainty, where there was that much to gain. The ends, and the other form, stand beside.

    What it does not mean: that the gold is found by calibrated attention does not say that the model answers by it, nor
    that it would answer better if its attention were so: nothing is changed in the model (`found_in_the_middle` does
    that).
    """
    if form not in get_args(Form):
        raise UsageError(f"calibrated_ranking: form is {form!r}; expected {', '.join(get_args(Form))}")
    if most < 1:
        raise UsageError(f"calibrated_ranking: most is at least 1, not {most}")
    left_out = LeftOut()
    traces = [trace for trace in selected(run, role=None, half=half) if not trace.facts.get("intervention")]
    # One that was read for its answer alone is no part of the question.
    prompts = documents_of([trace for trace in traces if len(trace.dataset.data_vars)], heads, sink_tokens, left_out)
    dummies = [each for each in prompts if each.given == "all_dummies"]
    golds = ranked_golds([each for each in prompts if each.given == "all"], dummies, form, seed, left_out)
    inner = [each for each in golds if each.inner]
    said: dict[str, Any] = {
        "analysis": "calibrated_ranking",
        "question": QUESTION,
        "definition": f"Share of prompts with the gold at inner places in which it is among the first {most} by "
        f"calibrated attention ({form}), less that by attention as it is, in percentage points.",
        "source": SOURCE,
        "parameters": {
            "form": form,
            "most": most,
            "heads": None if heads is None else [[int(index) for index in head] for head in heads],
            "sink_tokens": sink_tokens,
            "margin": margin,
            "half": half,
            "seed": seed,
        },
        "evidence": tuple(each.unit for each in golds),
        "columns": _COLUMNS,
        "table": tuple(_rows(golds, form, most)),
        "details": tuple(_details(golds, form, most)),
        "figures": tuple(ranking_figures(golds, most)),
    }
    gain = _gain(inner, form, most)
    if len(inner) < FEWEST_PROMPTS or gain is None:
        needed = "It needs prompts of documents with the gold at inner places, and the same of dummies (all_dummies)."
        return Finding(
            **said,
            headline="Whether calibration finds the gold cannot be told",
            claim=f"Too few prompts have the gold at an inner place, and dummies to calibrate by (n = {len(inner)}).",
            verdict="inconclusive",
            measured=Measurement(
                name=f"{_NAME[form]}, Recall@{most}", value=None, unit="points", n=len(inner), dropped=left_out.total
            ),
            notes=(*left_out.notes(), needed),
        )
    return _finding(said, inner, gain, form, most, margin, left_out)


_NAME = {
    "subtract": "recall of the gold gained by subtracting the dummy's attention, gold at inner places",
    "divide": "recall of the gold gained by dividing by the dummy's attention, gold at inner places",
}
_DONE = {"subtract": "Subtracting", "divide": "Dividing by"}


def _hits(golds: Sequence[RankedGold], score: str, most: int) -> list[bool]:
    return [getattr(each, score) <= most for each in golds]


def _gain(golds: Sequence[RankedGold], form: str, most: int) -> tuple[float, Interval] | None:
    after, before = _hits(golds, form, most), _hits(golds, "raw", most)
    interval = paired_difference(after, before)
    if interval is None:
        return None
    points = Interval(low=100 * interval.low, high=100 * interval.high, level=interval.level, method=interval.method)
    return 100 * float(np.mean(after) - np.mean(before)), points


def _finding(
    said: dict[str, Any],
    inner: list[RankedGold],
    gain: tuple[float, Interval],
    form: Form,
    most: int,
    margin: float,
    left_out: LeftOut,
) -> Finding:
    value, interval = gain
    before = 100 * float(np.mean(_hits(inner, "raw", most)))
    drawn = 100 * np.mean([each.shuffled <= most for each in inner], axis=0) - before
    by_chance = (1 + int((drawn >= value - 1e-9).sum())) / (1 + SHUFFLES)
    p_value = mcnemar_exact(_hits(inner, form, most), _hits(inner, "raw", most))
    assert p_value is not None
    reach = np.quantile(drawn, [0.025, 0.975])
    room = 100 - before > margin
    verdict: Verdict = "inconclusive"
    if interval.low > 0 and p_value < ALPHA and by_chance < ALPHA:
        verdict = "supported"
    elif interval.high <= margin and room:
        verdict = "refuted"
    n, what = len(inner), f"{before:.0f} % to {before + value:.0f} %"
    tail = f"({value:+.0f} points {interval}; {p_text(p_value)}, n = {n} prompts)"
    shuffled = f"with dummies at shuffled places it is {drawn.mean():+.0f} [{reach[0]:.0f}, {reach[1]:.0f}]"
    claims = {
        "supported": f"{_DONE[form]} a dummy's attention brings Recall@{most} of the gold at inner places from {what} "
        f"{tail}; {shuffled}.",
        "refuted": f"{_DONE[form]} a dummy's attention does not find more golds at inner places: Recall@{most} goes "
        f"from {what} {tail}.",
        "inconclusive": f"Whether {_DONE[form].lower()} a dummy's attention finds more golds cannot be told: Recall@"
        f"{most} at inner places goes from {what} {tail}; {shuffled}.",
    }
    notes = [
        *left_out.notes(),
        "Ranking is a by-product: nothing is changed in the model, and finding is not answering.",
    ]
    if not room:
        notes.append(f"The gold is among the first {most} by attention as it is: there is little to gain.")
    return Finding(
        **said,
        headline={
            "supported": "Calibrated attention finds the gold where attention does not",
            "refuted": "Calibration does not find more golds",
            "inconclusive": "Whether calibration finds the gold cannot be told",
        }[verdict],
        claim=claims[verdict],
        verdict=verdict,
        measured=Measurement(
            name=f"{_NAME[form]}, Recall@{most}", value=value, unit="points", interval=interval, n=n,
            dropped=left_out.total,
        ),
        control=Measurement(
            name="the same with dummies' attention at shuffled places",
            value=float(drawn.mean()),
            unit="points",
            interval=Interval(low=float(reach[0]), high=float(reach[1]), method=f"{SHUFFLES} shuffles of places"),
            n=n,
        ),
        comparison=Comparison(
            name=f"calibrated against as it is, exact McNemar test; {p_text(by_chance, SHUFFLES)} against shuffled",
            difference=value,
            interval=interval,
            p_value=p_value,
            n=n,
        ),
        notes=tuple(notes),
    )  # fmt: skip


def _details(golds: Sequence[RankedGold], form: str, most: int) -> Iterator[Measurement]:
    groups = {
        "at inner places": [each for each in golds if each.inner],
        "at the ends": [each for each in golds if not each.inner],
    }
    for where, some in groups.items():
        for score in ("raw", *FORMS) if some else ():
            hits = _hits(some, score, most)
            yield Measurement(
                name=f"Recall@{most}, {'as it is' if score == 'raw' else score}, gold {where}",
                value=100 * float(np.mean(hits)),
                unit="%",
                interval=_percent(sum(hits), len(hits)),
                n=len(hits),
            )
        for score in FORMS:
            gain = _gain(some, score, most)
            if gain is not None and not (score == form and where == "at inner places"):
                yield Measurement(
                    name=f"Recall@{most} gained by {score}, gold {where}",
                    value=gain[0],
                    unit="points",
                    interval=gain[1],
                    n=len(some),
                )


def _percent(hits: int, n: int) -> Interval | None:
    exact = clopper_pearson(hits, n)
    return exact and exact.model_copy(update={"low": 100 * exact.low, "high": 100 * exact.high})


def _rows(golds: Sequence[RankedGold], form: str, most: int) -> Iterator[tuple[JsonValue, ...]]:
    for length, place in sorted({(each.length, each.place) for each in golds}):
        here = [each for each in golds if (each.length, each.place) == (length, place)]
        recalls = [100 * float(np.mean(_hits(here, score, most))) for score in ("raw", *FORMS)]
        gain = _gain(here, form, most)
        ends = (None,) * 3 if gain is None else (gain[0], gain[1].low, gain[1].high)
        shown = [None if x is None else float(f"{x:.4g}") + 0.0 for x in (*recalls, *ends)]
        yield (length, place, len(here), *shown)

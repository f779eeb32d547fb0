"""Whether recurrent heads that forget faster bring back what was just read, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from probe import chart
from probe.analyses.figures.lengths import Rate
from probe.analyses.measures.recall_by_age import Recall, rate, recalls, recent
from probe.analyses.measures.state_readings import trained_length
from probe.analysis import analysis
from probe.finding import Comparison, Figure, Finding, Measurement, Verdict
from probe.intervals import mcnemar_exact, p_text, paired_difference
from probe.selection import LeftOut, answered, intervention_text, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Does what was just read come back once the state forgets faster?"
SOURCE = "This toolkit's own, after the remedies without training of Chen et al. 2024, arXiv 2410.07145"
_NAME = "recent answers right in long texts, with the intervention"


@analysis(question=QUESTION, source=SOURCE, about_recurrence=True)
def faster_forgetting(
    run: Run | Trace | Iterable[Trace], *, trained: int | None = None, margin: float = 0.1
) -> Finding:
    """Compare recent answers in texts of twice the training length or more under an intervention with those without.

    Recent is at most a training length (`trained`, or what the model's configuration says) before the end. The
    intervention is whatever the condition with the role `treatment` plays, `forget_faster` where a `state_collapse`
    suggested it; samples are paired, tested by McNemar's exact test. Supported: more are right, by more than `margin`,
    p < .05; refuted: certainly no more than `margin`. What the intervention costs is read from texts within the
    training length, where nothing had to be brought back.

    What it does not mean: that recent answers come back does not say that older ones do, which faster forgetting can
    only make rarer, nor that the state was what was wrong: it says that this intervention helped. Refuted is about
    these heads and powers.
    """
    left_out = LeftOut()
    baseline = selected(run)
    length = trained_length(baseline, trained)
    treated = selected(run, role="treatment")
    said: dict[str, Any] = {
        "analysis": "faster_forgetting",
        "question": QUESTION,
        "definition": "Share of answers at most a training length old that are right in texts of twice that length or "
        "more, under the intervention less without it, paired by sample.",
        "source": SOURCE,
        "parameters": {"trained": trained, "margin": margin},
        "evidence": tuple(trace.unit for trace in treated),
    }
    before = {each.prompt: each for each in recalls(answered(baseline, left_out), [], left_out)}
    after = {each.prompt: each for each in recalls(answered(treated, left_out), [], left_out)}
    both = sorted(before.keys() & after.keys())
    without, under = [before[name] for name in both], [after[name] for name in both]
    long = {each.prompt for each in recent(under, length, beyond=True)} if length else set()
    first = [each.right for each in under if each.prompt in long]
    second = [each.right for each in without if each.prompt in long]
    interval, p_value = paired_difference(first, second), mcnemar_exact(first, second)
    if length is None or interval is None or p_value is None:
        reason = "the training length is not known; give `trained`" if length is None else _missing(treated)
        return Finding(
            **said,
            claim=f"Whether faster forgetting brings recall back cannot be told: {reason}.",
            verdict="inconclusive",
            measured=Measurement(name=_NAME, value=None, n=0, dropped=left_out.total),
            notes=left_out.notes(),
        )
    with_it, without_it = Rate(sum(first), len(first)), Rate(sum(second), len(second))
    difference = with_it.share - without_it.share
    verdict: Verdict = "inconclusive"
    if p_value < 0.05 and difference > margin:
        verdict = "supported"
    elif interval.high < margin:
        verdict = "refuted"
    headline = {
        "supported": "Forgetting faster brings back what was just read",
        "refuted": "Forgetting faster brings nothing back",
        "inconclusive": "Whether forgetting faster brings recall back cannot be told",
    }[verdict]
    rates = _rates(without, under, length)
    return Finding(
        **said,
        headline=headline,
        claim=f"{headline}: of answers at most {length:,} tokens old in texts of twice that length or more "
        f"{_text(with_it)} are right with {intervention_text(treated[0].facts) or 'the intervention'}, "
        f"{_text(without_it)} without ({p_text(p_value)}, n = {with_it.n}){_cost(without, under, length)}.",
        verdict=verdict,
        measured=Measurement(
            name=_NAME, value=with_it.share, interval=with_it.interval, n=with_it.n, dropped=left_out.total
        ),
        control=Measurement(
            name="the same without it", value=without_it.share, interval=without_it.interval, n=without_it.n
        ),
        comparison=Comparison(
            name="exact McNemar test, paired by sample",
            difference=difference,
            interval=interval,
            p_value=p_value,
            n=with_it.n,
        ),
        details=tuple(_details(rates)),
        columns=("condition", "length_tokens", "num_prompts", "num_right", "share", "low", "high"),
        table=tuple(_rows(rates)),
        figures=(_figure(rates, headline),),
        notes=(
            *left_out.notes(),
            f"Only answers at most {length:,} tokens old are counted; a state that forgets faster loses older ones.",
        ),
    )


def _missing(treated: Sequence[Trace]) -> str:
    if not treated:
        return "no condition has the role `treatment`"
    return "no recent answer in a text of twice the training length was read both with the intervention and without"


def _text(share: Rate) -> str:
    return f"{share.share:.0%} [{share.interval.low:.0%}, {share.interval.high:.0%}]"


def _cost(without: Sequence[Recall], under: Sequence[Recall], length: int) -> str:
    """Return what it costs in texts within the training length, as a clause; empty where there are none."""
    costs = [rate(recent(some, length, beyond=False)) for some in (under, without)]
    if costs[0] is None or costs[1] is None:
        return ""
    return f"; within {length:,} tokens {_text(costs[0])} with it, {_text(costs[1])} without (n = {costs[0].n})"


def _rates(without: Sequence[Recall], under: Sequence[Recall], length: int) -> dict[str, dict[int, Rate]]:
    """Return the share of recent answers that are right by condition and length."""
    found: dict[str, dict[int, Rate]] = {}
    for name, some in (("with the intervention", under), ("without", without)):
        young = [each for each in some if each.age <= length]
        by_length = {at: rate([each for each in young if each.length == at]) for at in {e.length for e in young}}
        found[name] = {at: share for at, share in sorted(by_length.items()) if share is not None}
    return found


def _details(rates: Mapping[str, Mapping[int, Rate]]) -> Iterator[Measurement]:
    for name, by_length in rates.items():
        for at, here in by_length.items():
            yield Measurement(
                name=f"recent answers right at {at:,} tokens, {name}",
                value=here.share,
                interval=here.interval,
                n=here.n,
            )


def _rows(rates: Mapping[str, Mapping[int, Rate]]) -> Iterator[tuple[JsonValue, ...]]:
    for name, by_length in rates.items():
        for at, here in by_length.items():
            exact = (here.share, here.interval.low, here.interval.high)
            yield name, at, here.n, here.right, *(float(f"{value:.6g}") for value in exact)


def _figure(rates: Mapping[str, Mapping[int, Rate]], title: str) -> Figure:
    lengths = sorted({at for by_length in rates.values() for at in by_length})
    place = {at: float(index) for index, at in enumerate(lengths)}
    data = [
        chart.line(
            name,
            [place[at] + 0.05 * index for at in by_length],
            [each.share for each in by_length.values()],
            [each.interval.low for each in by_length.values()],
            [each.interval.high for each in by_length.values()],
            color=chart.SERIES[index],
            dash=chart.DASHES[index],
            symbol=chart.SYMBOLS[index],
            customdata=[[f"{at:,}", f"{each.right}/{each.n}"] for at, each in by_length.items()],
            hovertemplate="%{customdata[0]} tokens: %{y:.0%} (%{customdata[1]})<extra></extra>",
        )
        for index, (name, by_length) in enumerate(rates.items())
    ]
    x = chart.axis("prompt tokens", tickvals=list(place.values()), ticktext=[f"{at:,}" for at in lengths])
    return chart.figure(
        "faster_forgetting",
        title,
        "Recent answers by length of the text; bars are exact 95 % intervals.",
        data,
        {"xaxis": x, "yaxis": chart.share_axis("right answers")},
    )

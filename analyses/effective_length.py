"""Up to what length the model answers, and whether beyond it it fails to find or to answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import JsonValue

from probe.analyses.figures.lengths import NAMES, Rate, length_figure
from probe.analyses.measures.length_by_task import mean_over_tasks, rates_by_length, rates_by_task
from probe.analyses.measures.length_claims import GUESSING, LengthAnswer
from probe.analyses.measures.source_looks import SourceHits, follow_heads
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Verdict
from probe.intervals import mcnemar_exact, paired_difference
from probe.selection import LeftOut, answered, length, selected

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.storage.trace_store import Run, Trace


QUESTION = "From what length does the model fail, and does it fail to find or to answer?"
SOURCE = (
    "Effective length: Hsieh et al. 2024, RULER, arXiv 2404.06654 (there 85.6, Llama-2-7B at 4K, over 13 tasks); the "
    "two controls and the heads' hits: this toolkit's own"
)
_COLUMNS = (
    "condition",
    "length_tokens",
    "num_prompts",
    "num_right",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "heads_at_source",
    "heads_at_source_low",
    "heads_at_source_high",
)


@analysis(question=QUESTION, source=SOURCE, needs={"top_keys": {"k": 1}}, does_without_attention=True)
def effective_length(
    run: Run | Trace | Iterable[Trace], *, threshold: float = 0.856, head_threshold: float = 0.1, seed: int = 0
) -> Finding:
    """Find the largest length at and below which the share of right answers is at least `threshold` at every length.

    The threshold is RULER's 85.6 % (Hsieh et al. 2024), which was set for the mean of 13 tasks: give your own where
    another matters. The interval's low end pools the prompts from a length up to the effective one and asks that their
    Clopper-Pearson interval lie above the threshold, as it may where accuracy does not rise with length; its high end
    is the last length before the first whose interval lies below. Supported: some length certainly fails; refuted: all
    lengths certainly hold.

    The same question over the needle's sentence alone tells `cannot find` from `cannot answer`, by an exact paired test
    over the first length that fails and all beyond; with the needle left out, right answers are guesses. Where several
    tasks are among the traces (fact `task`, else their workload) each has its effective length beside the headline,
    which pools their prompts, and so has the mean over tasks, which is what RULER takes. Where `top_keys` was captured,
    it also says how often the heads that copy (score above `head_threshold` where answers are right, see
    `retrieval_heads`) look at the right token.

    What it does not mean: it is of this task at this threshold and says nothing of lengths that were not tried: a model
    that finds a sentence may fail to reason over the same text. Refuted is no proof that a longer text holds.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold {threshold}: expected a share above 0, up to 1")
    left_out = LeftOut()
    roles = {name: answered(selected(run, role=name), left_out) for name in NAMES}
    rates = {name: rates_by_length(cases) for name, cases in roles.items()}
    baseline = rates["baseline"]
    parameters: dict[str, JsonValue] = {"threshold": threshold, "head_threshold": head_threshold, "seed": seed}
    said: dict[str, Any] = {
        "analysis": "effective_length",
        "question": QUESTION,
        "definition": "The largest length at and below which the share of right answers is at least "
        f"{100 * threshold:g} % at every length tried; 0 where it fails at the shortest.",
        "source": SOURCE,
        "parameters": parameters,
        "evidence": tuple(trace.unit for cases in roles.values() for trace, _ in cases),
    }
    num_prompts = sum(rate.n for rate in baseline.values())
    if not baseline:
        return Finding(
            **said,
            claim="No answer could be judged, so no length can be named.",
            verdict="inconclusive",
            measured=Measurement(name="effective length", value=None, unit="tokens", n=0, dropped=left_out.total),
            notes=left_out.notes(),
        )
    reach = _reach({at: rate.share for at, rate in baseline.items()}, threshold)
    low, high = _ends(baseline, reach, threshold)
    method = "lengths whose Clopper-Pearson intervals allow it, if accuracy does not rise with length"
    fails = [at for at in baseline if baseline[at].interval.high < threshold]
    verdict: Verdict = "supported" if fails else "refuted" if low == max(baseline) else "inconclusive"
    first_failure = next((at for at in baseline if at > reach), None)
    hits = follow_heads(roles["baseline"], head_threshold, seed)
    guessed = _pooled(rates["needle_absent"])
    comparison = _against_gold(roles, first_failure)
    tasks = rates_by_task(roles["baseline"])
    by_task = [*_by_task(tasks, threshold)] if len(tasks) > 1 else []
    answer = LengthAnswer(rates, reach, first_failure, threshold, verdict, comparison, hits)
    return Finding(
        **said,
        headline=answer.headline,
        claim=_with_tasks(answer.claim, by_task, threshold),
        verdict=verdict,
        measured=Measurement(
            name="effective length",
            value=float(reach),
            unit="tokens",
            interval=Interval(low=float(low), high=float(high), method=method),
            n=num_prompts,
            dropped=left_out.total,
        ),
        control=None if guessed is None else _percentage("right answers with the needle left out (guessing)", guessed),
        comparison=comparison,
        details=(*_details(rates, hits), *by_task),
        columns=_COLUMNS,
        table=(*_rows(rates, hits), *(_rows_by_task(tasks) if by_task else ())),
        figures=(length_figure(rates, hits.by_length if hits else None, answer.headline, threshold),),
        notes=tuple(_notes(left_out, rates, hits, threshold, head_threshold)),
    )


def _pooled(rates: Mapping[int, Rate]) -> Rate | None:
    return sum(rates.values(), Rate(0, 0)) if rates else None


def _reach(shares: Mapping[int, float], threshold: float) -> int:
    reach = 0
    for at, share in shares.items():
        if share < threshold:
            break
        reach = at
    return reach


def _ends(rates: Mapping[int, Rate], reach: int, threshold: float) -> tuple[int, int]:
    """Return the effective length's interval: the lengths that the counts allow."""
    low, pooled = 0, Rate(0, 0)
    for at in sorted((at for at in rates if at <= reach), reverse=True):
        pooled = pooled + rates[at]
        if pooled.interval.low >= threshold:
            low = at
            break
    high = 0
    for at, rate in rates.items():
        if rate.interval.high < threshold:
            break
        high = at
    return low, max(high, reach)


def _by_task(tasks: Mapping[str, Mapping[int, Rate]], threshold: float) -> Iterator[Measurement]:
    """Yield the effective length of each task, and of the mean over tasks."""
    method = "lengths whose Clopper-Pearson intervals allow it, if accuracy does not rise with length"
    for name, rates in tasks.items():
        reach = _reach({at: rate.share for at, rate in rates.items()}, threshold)
        low, high = _ends(rates, reach, threshold)
        yield Measurement(
            name=f"effective length of {name}",
            value=float(reach),
            unit="tokens",
            interval=Interval(low=float(low), high=float(high), method=method),
            n=sum(rate.n for rate in rates.values()),
        )
    if mean := mean_over_tasks(tasks):
        n = sum(rate.n for rates in tasks.values() for at, rate in rates.items() if at in mean)
        value = float(_reach(mean, threshold))
        yield Measurement(name=f"effective length of the mean over {len(tasks)} tasks", value=value, unit="tokens", n=n)


def _with_tasks(claim: str, by_task: Sequence[Measurement], threshold: float) -> str:
    if not by_task:
        return claim
    said = ", ".join(f"{each.name.removeprefix('effective length of ')} {each.value or 0:,.0f}" for each in by_task)
    return f"{claim.removesuffix('.')}; by task, at {100 * threshold:g} %: {said} tokens."


def _rows_by_task(tasks: Mapping[str, Mapping[int, Rate]]) -> Iterator[tuple[JsonValue, ...]]:
    for name, rates in tasks.items():
        for at, rate in rates.items():
            exact = [float(f"{v:.4g}") for v in (rate.share, rate.interval.low, rate.interval.high)]
            yield (f"baseline, {name}", at, rate.n, rate.right, *exact, None, None, None)


def _percentage(name: str, rate: Rate) -> Measurement:
    ends = rate.interval
    interval = ends.model_copy(update={"low": 100 * ends.low, "high": 100 * ends.high})
    return Measurement(name=name, value=100 * rate.share, unit="%", interval=interval, n=rate.n)


def _against_gold(roles: Mapping[str, Sequence[tuple[Trace, Outcome]]], failure: int | None) -> Comparison | None:
    """Return the paired test of the whole text against the sentence alone, from the first length that fails on."""
    if failure is None:
        return None
    whole = {t.sample.name: (length(t), bool(o.correct)) for t, o in roles["baseline"] if length(t) >= failure}
    alone = {t.sample.name: bool(o.correct) for t, o in roles["gold_only"] if t.sample.name in whole}
    names = sorted(alone)
    if not names:
        return None
    first, second = [whole[name][1] for name in names], [alone[name] for name in names]
    interval = paired_difference(first, second)
    if interval is not None:
        interval = interval.model_copy(update={"low": 100 * interval.low, "high": 100 * interval.high})
    beyond = " and beyond" if max(whole[name][0] for name in names) > failure else ""
    return Comparison(
        name=f"whole text less sentence alone at {failure:,} tokens{beyond}, in points; exact McNemar test, by sample",
        difference=100 * (float(np.mean(first)) - float(np.mean(second))),
        interval=interval,
        p_value=mcnemar_exact(first, second),
        n=len(names),
    )


def _details(rates: Mapping[str, Mapping[int, Rate]], hits: SourceHits | None) -> Iterator[Measurement]:
    for at, rate in rates["baseline"].items():
        yield _percentage(f"right answers at {at:,} tokens", rate)
    gold = _pooled(rates["gold_only"])
    if gold is not None:
        yield _percentage("right answers from the needle's sentence alone", gold)
    for measurement in (hits.when_right, hits.when_wrong) if hits else ():
        if measurement is not None:
            yield measurement


def _rows(rates: Mapping[str, Mapping[int, Rate]], hits: SourceHits | None) -> Iterator[tuple[JsonValue, ...]]:
    for role, by_length in rates.items():
        for at, rate in by_length.items():
            exact = [float(f"{v:.4g}") for v in (rate.share, rate.interval.low, rate.interval.high)]
            looked = hits.by_length.get(at) if hits and role == "baseline" else None
            shown = [float(f"{v:.4g}") if np.isfinite(v) else None for v in looked] if looked else [None] * 3
            yield (role, at, rate.n, rate.right, *exact, *shown)


def _notes(
    left_out: LeftOut,
    rates: Mapping[str, Mapping[int, Rate]],
    hits: SourceHits | None,
    threshold: float,
    head_threshold: float,
) -> Iterator[str]:
    yield from left_out.notes()
    yield (
        f"Supported means: at some length the share of right answers is below {100 * threshold:g} % with 95 % "
        "certainty; refuted: at no length, with the same certainty."
    )
    if rates["needle_absent"]:
        yield (
            f"Not guessing means: with the needle left out, fewer than {100 * GUESSING:g} % are right with 95 % "
            f"certainty; it may guess: more than {100 * GUESSING:g} %, with the same certainty."
        )
    if not rates["needle_absent"]:
        yield "The needle was never left out, so guessing cannot be told from finding."
    if not rates["gold_only"]:
        yield "The sentence was never asked about alone, so `cannot find` cannot be told from `cannot answer`."
    if hits is None:
        yield "No retrieval heads to follow: top_keys was not captured, or no head copies where answers are right."
    else:
        names = ", ".join(str(head) for head in hits.heads[:12])
        yield (
            f"Heads followed: (layer, head) {names}{' …' if len(hits.heads) > 12 else ''}, those with a copying score "
            f"above {head_threshold:g} where answers are right; at step r the right token is the answer's r-th, "
            "whatever the model produced. Where samples are halved, heads are chosen on one half and "
            "followed on the other."
        )

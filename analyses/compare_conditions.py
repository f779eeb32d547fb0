"""Which interventions help, which hurt, and what they cost: every condition against doing nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import JsonValue

from probe.analyses.figures.conditions import condition_figures
from probe.analyses.measures.condition_attention import attention_changes
from probe.analyses.measures.condition_effect import (
    ConditionEffect,
    Difference,
    Pair,
    effect_of,
    paired,
    share_interval,
    too_many_cells,
)
from probe.analyses.measures.condition_reading import ConditionReading, read_conditions, untouched_for
from probe.analyses.measures.condition_rows import COLUMNS, condition_rows
from probe.analyses.measures.condition_verdict import (
    ORDER,
    By,
    Judged,
    Judgement,
    judge,
    might_gain,
    prompts_needed,
    verdict_of,
)
from probe.analyses.measures.needle_cells import MOST_PLACES
from probe.analysis import Needs, analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Measurement, Suggestion, Verdict
from probe.selection import LeftOut

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Which of these interventions help, which hurt, and what do they cost?"
SOURCE = (
    "This toolkit's own; McNemar 1947 (exact), Newcombe 1998 for pairs, Benjamini and Hochberg 1995 over the conditions"
)
NEEDS: Final[Needs] = {"span_mass": {}, "sink_mass": {}, "entropy": {}}


@analysis(question=QUESTION, source=SOURCE, needs=NEEDS, does_without_attention=True)
def compare_conditions(
    run: Run | Trace | Iterable[Trace],
    *,
    baseline: str | None = None,
    by: Literal["accuracy", "answer_loss"] = "accuracy",
    margin: float | None = None,
    leave_out: Sequence[str] = (),
    text: Sequence[str] = (),
    half: Literal["find", "test", "both"] | None = None,
    stage: str | None = None,
    seed: int = 0,
) -> Finding:
    """Compare every condition that has an intervention with doing nothing, on the same prompts.

    Paired by the prompts' names: right answers with McNemar's exact test, answer loss with a sign-flip permutation
    test, both adjusted over the conditions (Benjamini and Hochberg). A condition helps or hurts where q < 0.05 and its
    interval does not hold 0, in the quantity that is judged `by`; it is no different where the interval, no narrower
    than so few prompts allow, lies within `margin` (10 points; 0.1 nats per token). Supported: one that is no control
    helps. Refuted: none helps by more than `margin` with 95 % certainty, and there was that much to gain.

    A condition is held against the baseline of the same workload, of its own stage where that has one, or against the
    condition named `baseline`. What it costs: seconds and memory of reading a prompt, where both were captured or both
    not; the loss of the prompt's own text, where the prompt stayed the same; and that of ordinary text, which is a
    condition with the same intervention that asks nothing, has the role `needle_absent`, or is named in `text`, against
    its like without an intervention. Where attention was captured both ways, what became of it.

    What it does not mean: that a condition helps here says nothing of other tasks, lengths or models; none that helps
    is no proof that none could. Seconds and memory are of this implementation, which frees no cache where a policy
    would. A field that was tuned must have been chosen on other samples (`choose_condition`, then `half="test"`).
    """
    margin = (10.0 if by == "accuracy" else 0.1) if margin is None else margin
    if margin <= 0:
        raise UsageError(f"compare_conditions: margin is above 0, not {margin}")
    left_out = LeftOut()
    readings = read_conditions(run, left_out, half=half, stage=stage)
    names = {name for reading in readings for name in (reading.name, reading.condition)}
    notes = [
        f"Of {name!r}, which `{field}` names, nothing was read."
        for field, given in (("baseline", [baseline] if baseline else []), ("leave_out", leave_out), ("text", text))
        for name in given
        if readings and name not in names
    ]
    # Where the answer is not in the prompt, or nothing is asked, it is the text's own loss that tells.
    texts = [r for r in readings if not r.asked or r.role == "needle_absent" or {r.name, r.condition} & {*text}]
    treated = [r for r in readings if r.intervention and stage in (None, r.stage)]
    treated = [r for r in treated if baseline not in (r.condition, r.name)]
    treated = [r for r in treated if r.role != "baseline" and not {r.name, r.condition} & {*leave_out}]
    treated = [r for r in treated if r.name not in {other.name for other in texts}]
    found = [_effect(r, readings, texts, baseline, seed, left_out, notes) for r in treated]
    effects = [effect for effect in found if effect is not None]
    judged = sorted(
        judge(effects, by, margin), key=lambda j: (ORDER.index(j.judgement), -j.gain.difference, j.effect.name)
    )
    verdict = verdict_of(judged, by, margin)
    parameters: dict[str, JsonValue] = {
        "baseline": baseline, "by": by, "margin": margin, "leave_out": list(leave_out), "text": list(text),
        "half": half, "stage": stage, "seed": seed,
    }  # fmt: skip
    said: dict[str, Any] = {
        "analysis": "compare_conditions",
        "question": QUESTION,
        "definition": "Share of prompts answered right with an intervention less that without it, the same prompts."
        if by == "accuracy"
        else "Mean loss of the right answer's tokens without an intervention less that with it, the same prompts.",
        "source": SOURCE,
        "parameters": parameters,
        "evidence": tuple(unit for e in effects for a, b in e.pairs for unit in (*a.units, *b.units)),
    }
    if not judged:
        return Finding(
            **said,
            headline="Whether anything helps cannot be told",
            claim="No prompt was answered both with an intervention and without it.",
            verdict="inconclusive",
            measured=Measurement(name=_NAMES[by], value=None, unit=_UNITS[by], n=0, dropped=left_out.total),
            notes=(*left_out.notes(), *notes, "It needs conditions with an intervention, and a baseline."),
        )
    return _finding(said, judged, verdict, by, margin, left_out, notes, seed)


_NAMES = {
    "accuracy": "right answers, more than with nothing done",
    "answer_loss": "answer loss, less than with nothing",
}
_UNITS = {"accuracy": "points", "answer_loss": "nats per token"}


def _effect(
    reading: ConditionReading,
    readings: Sequence[ConditionReading],
    texts: Sequence[ConditionReading],
    baseline: str | None,
    seed: int,
    left_out: LeftOut,
    notes: list[str],
) -> ConditionEffect | None:
    before = untouched_for(reading, readings, baseline)
    pairs, lone = paired(reading, before)
    here = [name for name in lone if name in reading.prompts or before[name].traces[0].stage == reading.stage]
    if here:
        left_out.add(f"a prompt of {reading.name} that is not there both ways", len(here))
        more = f" and {len(here) - 3} more" if len(here) > 3 else ""
        notes.append(f"Of {reading.name} cannot be paired: {', '.join(here[:3])}{more}.")
    if not pairs:
        notes.append(f"{reading.name} has nothing to be held against: no condition reads its prompts without it.")
        return None
    plain: list[Pair] = []
    for other in texts:
        if other.intervention == reading.intervention and other.name != reading.name:
            plain += paired(other, untouched_for(other, readings, None))[0]
    return effect_of(reading, before, plain, seed)


def _finding(
    said: dict[str, Any],
    judged: list[Judged],
    verdict: Verdict,
    by: By,
    margin: float,
    left_out: LeftOut,
    notes: list[str],
    seed: int,
) -> Finding:
    cures = [each for each in judged if each.effect.reading.role != "control"] or judged
    best = max(cures, key=lambda each: (each.gain.difference, each.effect.name))
    title = _title(judged, verdict)
    known = [b for _, b in best.effect.pairs if math.isfinite(b.accuracy)]
    before = share_interval([b.accuracy for b in known], [b.prompt for b in known], seed)
    return Finding(
        **said,
        headline=title,
        claim=_claim(judged, best, verdict, by, margin),
        verdict=verdict,
        measured=Measurement(
            name=f"{_NAMES[by]}: {best.effect.name}",
            value=best.gain.difference,
            unit=_UNITS[by],
            interval=best.gain.interval,
            n=best.gain.n,
            dropped=left_out.total,
        ),
        control=Measurement(
            name="right answers with nothing done",
            value=best.effect.accuracy.before,
            unit="%",
            interval=before,
            n=best.effect.accuracy.n,
        ),
        comparison=Comparison(
            name=f"{best.effect.name} against nothing; {_test(best, by)}, adjusted over {len(judged)} conditions",
            difference=best.gain.difference,
            interval=best.gain.interval,
            p_value=best.q,
            n=best.gain.n,
        ),
        details=tuple(m for each in judged for m in _details(each, seed)),
        columns=COLUMNS,
        table=tuple(row for each in judged for row in condition_rows(each)),
        figures=tuple(
            condition_figures(
                [each.effect for each in judged], {j.effect.name: j.judgement for j in judged}, by, margin, title
            )
        ),
        suggests=tuple(_suggested(best, by)) if verdict == "supported" else (),
        notes=(*left_out.notes(), *notes, *_notes(judged, best, by, margin)),
    )


def _suggested(best: Judged, by: By) -> Iterator[Suggestion]:
    kind, fields = next(iter((best.effect.reading.intervention or {}).items()))
    yield Suggestion(
        intervention=kind,
        fields=dict(fields),
        reason=f"It was the best of these: {_numbers(best, by)}, n = {best.effect.accuracy.n} prompts.",
    )


def _title(judged: Sequence[Judged], verdict: Verdict) -> str:
    names = [each.effect.name for each in judged if each.judgement == "helps" and each.effect.reading.role != "control"]
    if verdict == "supported":
        return (
            f"{', '.join(names[:3])} {'helps' if len(names) == 1 else 'help'}"
            if len(names) <= 3
            else f"{names[0]} and {len(names) - 1} others help"
        )
    hurt = sum(each.judgement == "hurts" for each in judged)
    worse = f", {hurt} hurt{'s' * (hurt == 1)}" if hurt else ""
    return ("None of these helps" if verdict == "refuted" else "Whether any of these helps cannot be told") + worse


def _claim(judged: Sequence[Judged], best: Judged, verdict: Verdict, by: By, margin: float) -> str:
    number = len(judged)
    before = best.effect.accuracy
    start = f"With nothing done {before.before:.0f} % of answers are right (n = {before.n} prompts)"
    words: dict[Judgement, tuple[str, str]] = {
        "helps": ("helps", "help"),
        "hurts": ("hurts", "hurt"),
        "no different": ("makes no difference", "make no difference"),
        "cannot be told": ("cannot be told from nothing", "cannot be told from nothing"),
    }
    parts = []
    for kind in ORDER:
        own = [each for each in judged if each.judgement == kind]
        if not own:
            continue
        shown = ", ".join(f"{each.effect.name} ({_numbers(each, by)})" for each in own[:4])
        more = f" and {len(own) - 4} more" if len(own) > 4 else ""
        parts.append(f"{len(own)} {words[kind][len(own) > 1]}: {shown}{more}")
    of = "the one condition" if number == 1 else f"{number} conditions"
    closing = ""
    if verdict == "inconclusive":
        needed = prompts_needed([each for each in judged if each.judgement == "cannot be told"] or judged, margin)
        if not any(might_gain(each, by, margin) for each in judged):
            closing = "; there is too little to gain for a cure to show"
        elif needed is not None:
            closing = f"; about {needed} prompts would tell a difference of {_margin(by, margin)}"
    return f"{start}; of {of} {'; '.join(parts)}{closing}."


def _numbers(each: Judged, by: By) -> str:
    if by == "accuracy":
        accuracy = each.effect.accuracy
        return f"{accuracy.value:.0f} %, {_signed(accuracy, '.0f')} points, q {_q(each.q)}"
    assert each.effect.answer_loss is not None
    return f"{_signed(each.effect.answer_loss, '.2f')} nats, q {_q(each.q)}"


def _signed(difference: Difference, digits: str) -> str:
    ends = difference.interval
    # Adding 0 makes a zero of either sign one.
    value = round(difference.difference, 6) + 0.0
    return f"{value:+{digits}}" + ("" if ends is None else f" [{ends.low:{digits}}, {ends.high:{digits}}]")


def _q(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def _margin(by: By, margin: float) -> str:
    return f"{margin:g} points" if by == "accuracy" else f"{margin:g} nats per token"


def _test(best: Judged, by: By) -> str:
    exact = by == "accuracy" and best.effect.reading.num_draws == 1
    return "exact McNemar test, paired by prompt" if exact else "sign-flip permutation test, paired by prompt"


def _details(each: Judged, seed: int) -> Iterator[Measurement]:
    effect = each.effect
    for name, unit, found in (
        ("right answers", "points", effect.accuracy),
        ("loss of the right answer", "nats per token", effect.answer_loss),
        ("loss of the prompt's own text", "nats per token", effect.text_loss),
        ("loss of ordinary text", "nats per token", effect.plain_text),
    ):
        if found is not None:
            yield Measurement(
                name=f"{effect.name}: {name}, more than with nothing done",
                value=found.difference,
                unit=unit,
                interval=found.interval,
                n=found.n,
            )
    for at, by_length in effect.by_length.items() if len(effect.by_length) > 1 else ():
        yield Measurement(
            name=f"{effect.name}: right answers at {at:g} tokens, more than with nothing done",
            value=by_length.difference,
            unit="points",
            interval=by_length.interval,
            n=by_length.n,
        )
    if effect.cost is not None:
        cost = effect.cost
        yield Measurement(
            name=f"{effect.name}: time of reading a prompt, over that with nothing done, on this machine",
            value=cost.times if math.isfinite(cost.times) else None,
            n=cost.n,
        )
        more = cost.peak_bytes - cost.peak_bytes_before
        if math.isfinite(more):
            yield Measurement(
                name=f"{effect.name}: largest memory while reading, more than with nothing done, on this machine",
                value=more / 1e6,
                unit="MB",
                n=cost.n,
            )
    for measured in attention_changes(effect.pairs, seed):
        yield measured.model_copy(update={"name": f"{effect.name}: {measured.name}"})


def _notes(judged: Sequence[Judged], best: Judged, by: By, margin: float) -> Iterator[str]:
    yield (
        f"No difference means: less than {_margin(by, margin)} with 95 % certainty. Refuted means: none helps by more "
        "than that, and there was that much to gain."
    )
    for each in judged:
        reading = each.effect.reading
        drawn = f"; mean over {reading.num_draws} draws" if reading.num_draws > 1 else ""
        role = f" ({reading.role})" if reading.role in ("treatment", "control") else ""
        yield f"{reading.name}{role}: {reading.how}{drawn}."
    if len(judged) > 1:
        yield (
            f"The headline is the largest of {len(judged)} differences, chosen on these prompts; on others it would be "
            "smaller. Each condition's own interval knows nothing of the others."
        )
    controls = [each for each in judged if each.effect.reading.role == "control" and each.judgement == "helps"]
    if controls:
        yield f"A control helps too: {', '.join(each.effect.name for each in controls)}."
    crowded = [each.effect.name for each in judged if too_many_cells(each.effect.by_length, each.effect.by_depth)]
    if crowded:
        yield (
            f"Lengths and depths together have no rows for {', '.join(crowded)}: there are more than {MOST_PLACES} of "
            "one of them."
        )
    changed = [each.effect for each in judged if each.effect.text_loss is None]
    if changed:
        yield (
            f"The text's own loss cannot be compared for {', '.join(effect.name for effect in changed)}: the prompt is "
            "another one there, or its tokens or its loss are not on record."
        )
    missing = [each.effect.name for each in judged if each.effect.cost is None]
    if missing:
        yield (
            f"What reading took cannot be compared for {', '.join(missing)}: it is not on record, or attention was "
            "captured on one side alone."
        )
    if len(missing) < len(judged):
        yield "Time (median over prompts) and largest memory are those of one machine; another gives others."

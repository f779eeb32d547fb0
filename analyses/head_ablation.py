"""What removing the found heads does that removing as many others does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import JsonValue

from probe.analyses.figures.ablation import Condition, ablation_figures
from probe.analyses.measures.ablation_effect import difference, mean_over_draws, no_narrower
from probe.analyses.measures.ablation_reading import QUANTITIES, AblationReading, Floats, controls_of, read
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS, clopper_pearson, mcnemar_exact, sign_flip
from probe.selection import LeftOut, answered, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Does removing these heads break the answer, where removing as many others does not?"
SOURCE = (
    "Masking retrieval heads against random heads: Wu et al. 2024, arXiv 2404.15574, section 4; matched draws, paired "
    "tests and held-out samples: this toolkit's own"
)
_COLUMNS = ("condition", "draw", "num_prompts", "accuracy", "accuracy_low", "accuracy_high", "answer_loss", "text_loss")


@analysis(question=QUESTION, source=SOURCE)
def head_ablation(
    run: Run | Trace | Iterable[Trace],
    *,
    treatment: str | None = None,
    margin: float = 10.0,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Compare prompts answered with the found heads removed, with as many others removed (random draws), and with none.

    Paired by sample: the treatment's right answers against each sample's mean over the control's draws (paired sign-
    flip permutation test; interval by resampling prompts and draws), and against the untouched model (exact McNemar
    test). The treatment is also ranked among the draws. Supported: the interval lies below 0, p < 0.05, and hardly a
    draw (one in twenty at most, of 19 or more) does as much. Refuted: the interval, no narrower than so few prompts
    allow, lies within `margin` percentage points of 0, and the control leaves right answers to break. `treatment`
    names the condition, where there are several.

    Answer loss tells how far the right answer fell, text loss whether the model broke altogether. Heads must be found
    on other samples than these (see `retrieval_heads(half=...)`).

    What it does not mean: that the answer breaks says that the heads are needed for it, not that they are enough, nor
    what they do. Refuted does not make them idle: others may stand in for them (`self_repair`), and this form of
    removal may leave what they carry.
    """
    left_out = LeftOut()
    traces = selected(run, role="treatment", half=half)
    names = sorted({trace.condition for trace in traces})
    if treatment is not None and names and treatment not in names:
        raise UsageError(f"no treatment {treatment!r}; there are {names}")
    chosen = treatment or (names[0] if names else None)
    parameters: dict[str, JsonValue] = {"treatment": treatment, "margin": margin, "half": half, "seed": seed}
    reading = None
    evidence: tuple[str, ...] = ()
    others: list[str] = []
    if chosen is not None:
        treated = answered([trace for trace in traces if trace.condition == chosen], left_out)
        controls, foreign = controls_of(chosen, answered(selected(run, role="control", half=half), left_out))
        others = [*(name for name in names if name != chosen), *foreign]
        untouched = answered(selected(run, role="baseline", half=half), left_out)
        reading = read(treated, controls, untouched)
        if reading is not None:
            used = [*treated, *controls, *untouched]
            evidence = tuple(trace.unit for trace, _ in used if trace.sample.name in reading.prompts)
    said: dict[str, Any] = {
        "analysis": "head_ablation",
        "question": QUESTION,
        "definition": "Share of prompts answered right with the found heads removed, less that with as many others of "
        "the same layers removed (mean over random draws), paired by sample.",
        "source": SOURCE,
        "parameters": parameters,
        "evidence": evidence,
    }
    if reading is None:
        return Finding(
            **said,
            claim="No prompt was answered both with the found heads removed and with others removed.",
            verdict="inconclusive",
            measured=Measurement(name=_MEASURED, value=None, unit="%", n=0, dropped=left_out.total),
            notes=(*left_out.notes(), "It needs traces with the roles treatment and control."),
        )
    return _finding(said, reading, left_out, margin, seed, others)


_MEASURED = "right answers with the found heads removed"


def _rank(reading: AblationReading) -> tuple[int, float]:
    """Return how many draws have an accuracy as low as the treatment's, and the permutation p-value of that."""
    treatment = reading.treatment["accuracy"]
    control = reading.control["accuracy"]
    each = [np.nanmean(control[:, d]) for d in range(control.shape[1])]
    # Each draw is held against the treatment on its own prompts.
    own = [treatment[np.isfinite(control[:, d])].mean() for d in range(control.shape[1])]
    as_low = int(sum(draw <= mine + 1e-9 for draw, mine in zip(each, own, strict=True)))
    return as_low, (1 + as_low) / (1 + len(each))


def _finding(
    said: dict[str, Any], reading: AblationReading, left_out: LeftOut, margin: float, seed: int, others: list[str]
) -> Finding:
    n, right = len(reading.prompts), reading.treatment["accuracy"] > 50
    exact = clopper_pearson(int(right.sum()), n)
    assert exact is not None
    ends = exact.model_copy(update={"low": 100 * exact.low, "high": 100 * exact.high})
    control, control_ends = mean_over_draws(reading.control["accuracy"], (0.0, 100.0), seed)
    less, interval, each = difference(reading, "accuracy", seed)
    p = sign_flip(each, seed=seed)
    as_low, rank_p = _rank(reading)
    verdict: Verdict = "inconclusive"
    if n >= FEWEST_PROMPTS and interval is not None and p is not None:
        low, high = no_narrower(interval, n)
        could_break = control_ends is not None and control_ends.low > margin
        if interval.high < 0 and p < 0.05 and rank_p <= 0.05:
            verdict = "supported"
        elif low >= -margin and high <= margin and could_break:
            verdict = "refuted"
    before = _against_baseline(reading)
    notes = [
        *left_out.notes(),
        f"{as_low} of {len(reading.draws)} draws leave as few right answers as the treatment (rank p = {rank_p:.2g}).",
        f"Refuted means: the two differ by less than {margin:g} percentage points with 95 % certainty, and there were "
        "right answers to break.",
        *_norms(reading),
    ]
    if before is not None:
        notes.append(f"Against the untouched model: exact McNemar test, p {_p(before[1])}, n = {before[2]}.")
    if reading.how:
        notes.append(f"Intervention: {reading.how}.")
    if len(reading.draws) < 19:
        notes.append("Fewer than 19 draws: the rank cannot reach p = 0.05, so that nothing can be supported.")
    if others:
        notes.append(f"Other treatments and controls in these traces, not looked at here: {', '.join(others)}.")
    conditions = _conditions(reading, ends, control, control_ends, seed)
    return Finding(
        **said,
        headline=_headline(reading, verdict),
        claim=_claim(reading, float(100 * right.mean()), ends, control, control_ends, less, p, verdict, before),
        verdict=verdict,
        measured=Measurement(
            name=_MEASURED, value=100 * float(right.mean()), unit="%", interval=ends, n=n, dropped=left_out.total
        ),
        control=Measurement(
            name=f"right answers with others removed ({len(reading.draws)} draws)",
            value=control,
            unit="%",
            interval=control_ends,
            n=n,
        ),
        comparison=Comparison(
            name="found heads less others, in percentage points; sign-flip permutation test, paired by sample",
            difference=less,
            interval=interval,
            p_value=p,
            p_is_bound=p is not None and p <= 1e-4,
            n=n,
        ),
        details=tuple(_details(reading, before, seed)),
        columns=_COLUMNS,
        table=tuple(_rows(conditions)),
        figures=tuple(ablation_figures(conditions, n)),
        notes=tuple(notes),
    )


def _norms(reading: AblationReading) -> Iterator[str]:
    ratio = reading.norm_ratio
    if ratio is None:
        yield "The others' output norms were not measured."
    elif 0.5 <= ratio <= 2:
        yield f"The others are matched in output norm: theirs is {ratio:.2g} of the found heads' (median over draws)."
    else:
        yield (
            f"No other heads of these layers have a like output norm: the others' is {ratio:.2g} of the found heads' "
            "(median over draws), so that the contrast is also one between strong heads and weak ones."
        )


def _against_baseline(reading: AblationReading) -> tuple[float, float | None, int] | None:
    """Return the untouched model's share of right answers, the McNemar p-value and the number of pairs."""
    if reading.baseline is None:
        return None
    known = np.isfinite(reading.baseline["accuracy"])
    if not known.any():
        return None
    before, after = reading.baseline["accuracy"][known] > 50, reading.treatment["accuracy"][known] > 50
    return float(100 * before.mean()), mcnemar_exact(after, before), int(known.sum())


def _details(
    reading: AblationReading, before: tuple[float, float | None, int] | None, seed: int
) -> Iterator[Measurement]:
    if reading.norm_ratio is not None:
        yield Measurement(
            name="output norm of the others over that of the found heads, median over draws",
            value=reading.norm_ratio,
            n=len(reading.draws),
        )
    if before is not None and reading.baseline is not None:
        exact = clopper_pearson(round(before[0] / 100 * before[2]), before[2])
        ends = None if exact is None else exact.model_copy(update={"low": 100 * exact.low, "high": 100 * exact.high})
        yield Measurement(
            name="right answers of the untouched model", value=before[0], unit="%", interval=ends, n=before[2]
        )
    for key, name in (("answer_loss", "loss of the right answer"), ("text_loss", "loss of the prompt's text")):
        value, interval, each = difference(reading, key, seed)
        if len(each):
            name = f"{name}, found heads removed less others removed"
            yield Measurement(name=name, value=value, unit="nats per token", interval=interval, n=len(each))


def _conditions(
    reading: AblationReading, ends: Interval, control: float, control_ends: Interval | None, seed: int
) -> list[Condition]:
    """Return what each condition gave, for the table and the figures."""
    found = []
    if reading.baseline is not None and np.isfinite(reading.baseline["accuracy"]).any():
        rates = reading.baseline["accuracy"][np.isfinite(reading.baseline["accuracy"])]
        exact = clopper_pearson(int((rates > 50).sum()), len(rates))
        ends_before = None
        if exact is not None:
            ends_before = exact.model_copy(update={"low": 100 * exact.low, "high": 100 * exact.high})
        found.append(_condition("nothing removed", None, reading.baseline, float(rates.mean()), ends_before, seed))
    mean = float(reading.treatment["accuracy"].mean())
    found.append(_condition("found heads removed", None, reading.treatment, mean, ends, seed))
    found.append(_condition("others removed", None, reading.control, control, control_ends, seed))
    for index, draw in enumerate(reading.draws):
        values = {key: reading.control[key][:, index] for key in QUANTITIES}
        found.append(_condition("others removed", draw, values, float(np.nanmean(values["accuracy"])), None, seed))
    return found


def _condition(
    name: str, draw: int | None, values: dict[str, Floats], accuracy: float, interval: Interval | None, seed: int
) -> Condition:
    def mean(key: str) -> tuple[float, float, float]:
        known = values[key] if values[key].ndim == 2 else values[key][:, None]
        known = known[np.isfinite(known).any(axis=1)]
        if not len(known):
            return (float("nan"),) * 3
        value, ends = mean_over_draws(known, None, seed)
        return (value, ends.low, ends.high) if ends is not None and draw is None else (value, np.nan, np.nan)

    counted = values["accuracy"] if values["accuracy"].ndim == 1 else values["accuracy"][:, 0]
    number = int(np.isfinite(counted).sum()) if values["accuracy"].ndim == 1 else len(values["accuracy"])
    low, high = (np.nan, np.nan) if interval is None else (interval.low, interval.high)
    return Condition(name, draw, number, (accuracy, low, high), mean("answer_loss"), mean("text_loss"))


def _rows(conditions: list[Condition]) -> Iterator[tuple[JsonValue, ...]]:
    for condition in conditions:
        accuracy = [value / 100 for value in condition.accuracy]
        numbers = (*accuracy, condition.answer_loss[0], condition.text_loss[0])
        shown = [float(f"{number:.4g}") if np.isfinite(number) else None for number in numbers]
        yield (condition.name, condition.draw, condition.num_prompts, *shown)


def _p(value: float | None) -> str:
    return "unknown" if value is None else "≤ 0.0001" if value <= 1e-4 else f"= {value:.2g}"


def _headline(reading: AblationReading, verdict: Verdict) -> str:
    number = len(reading.heads)
    heads, carry = ("one head", "carries") if number == 1 else (f"{number or 'the found'} heads", "carry")
    return {
        "supported": f"{heads.capitalize()} {carry} the answer; as many others of the same layers do not",
        "refuted": f"{heads.capitalize()} {carry} no more of the answer than others do",
        "inconclusive": f"Whether {heads} {carry} the answer cannot be told",
    }[verdict]


def _claim(
    reading: AblationReading,
    value: float,
    ends: Interval,
    control: float,
    control_ends: Interval | None,
    difference: float,
    p: float | None,
    verdict: Verdict,
    before: tuple[float, float | None, int] | None,
) -> str:
    n = len(reading.prompts)
    start = f"from {before[0]:.0f} % to " if before is not None else "to "
    after = f"{value:.0f} % [{ends.low:.0f}, {ends.high:.0f}]"
    other = f"{control:.1f} %"
    if control_ends is not None:
        other += f" [{control_ends.low:.1f}, {control_ends.high:.1f}]"
    draws = f"{len(reading.draws)} draw{'s' if len(reading.draws) > 1 else ''}"
    said = (
        f"Removing {_named(reading.heads)} takes right answers {start}{after}; removing as many others of the same "
        f"layers leaves {other} ({draws})"
    )
    test = f"difference {difference:+.0f} points, p {_p(p)}, n = {n} prompt{'s' if n > 1 else ''}"
    closing = {
        "supported": "",
        "refuted": ": no more than any heads would",
        "inconclusive": ": the two cannot be told apart for certain",
    }[verdict]
    return f"{said}{closing} ({test}){_text(reading)}."


def _named(heads: tuple[tuple[int, int], ...]) -> str:
    if not heads:
        return "the found heads"
    names = ", ".join(str(head) for head in heads[:6])
    more = f" and {len(heads) - 6} more" if len(heads) > 6 else ""
    return f"the {len(heads)} heads {names}{more}" if len(heads) > 1 else f"head {names}"


def _text(reading: AblationReading) -> str:
    """Say what became of the loss of the text itself: an answer can also break because the whole model did."""
    if reading.baseline is None:
        return ""
    losses = [reading.baseline["text_loss"], reading.treatment["text_loss"], reading.control["text_loss"]]
    if not all(np.isfinite(loss).any() for loss in losses):
        return ""
    before, without, others = (float(np.nanmean(loss)) for loss in losses)
    return (
        f"; the loss of the text itself goes from {before:.2f} to {without:.2f} nats per token, to {others:.2f} with "
        "others removed"
    )

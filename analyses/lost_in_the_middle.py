"""Whether an answer in the middle of the context is lost, and from what length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import JsonValue

from probe.analyses.figures.middle import middle_figures
from probe.analyses.figures.positions import listed
from probe.analyses.measures.ends_and_middle import NUMBERS, end_weights, fitted_curve
from probe.analyses.measures.place_profile import DRAWS, PlaceProfile, both_ends, holm, profiles
from probe.analysis import analysis
from probe.finding import Comparison, Finding, Interval, Measurement, Verdict
from probe.intervals import clopper_pearson, cluster_bootstrap, p_text, square_and_add
from probe.selection import LeftOut, answered, depth, finite, length, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Is an answer in the middle of the context lost, and from what length?"
SOURCE = (
    "Accuracy by place of the gold document: Liu et al. 2023, Lost in the Middle, arXiv 2307.03172, sections 2-3; "
    "U-index, primacy, recency, the fitted curve and their test: this toolkit's own"
)
ALPHA = 0.01
"""Largest p-value that supports a U."""


@dataclass(frozen=True)
class _Case:
    """One prompt: where its answer stood, and how it went."""

    prompt: str
    unit: str
    length: int
    place: float
    correct: bool
    loss: float | None


@analysis(question=QUESTION, source=SOURCE, does_without_attention=True)
def lost_in_the_middle(
    run: Run | Trace | Iterable[Trace],
    *,
    margin: float = 10.0,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Measure how far accuracy in the middle lies below that at both ends, by length.

    Over the share of right answers by the gold's place (0: first, 1: last), length by length, *primacy* is the first
    place less the mean of the inner ones, *recency* the last less that mean, and *U* the mean of the two, in percentage
    points. The headline is U, mean over the lengths that have right and wrong answers; elsewhere ceiling or floor hides
    what places do. Beside it stand the same three over the worst inner place (the U-index, which has the choice of that
    place in it), and those of a parabola fitted to the rates. All of these are this toolkit's own: the paper has curves
    and no number.

    Supported: both ends lie above the inner places, each with p < 0.01 against places shuffled among the prompts of
    each length, so that a profile that only rises or only falls is no U. Refuted: primacy or recency is at most
    `margin` points with 97.5 % certainty. A length counts as losing the middle where its own test, adjusted for their
    number (Holm), stays below 0.01.

    It does not say why the middle is lost; `document_attention` shows where the model looks.
    """
    left_out = LeftOut()
    cases = list(_cases(selected(run, half=half), left_out))
    each = profiles([c.correct for c in cases], [c.length for c in cases], [c.place for c in cases], seed)
    told = [profile for profile in each if profile.tells]
    few = len({case.length for case in cases}) - len(each)
    if few:
        left_out.add("length with fewer than three places", few)
    losses = [_loss(case_group, profile, seed) for profile in each for case_group in [_at(cases, profile)]]
    said: dict[str, Any] = {
        "analysis": "lost_in_the_middle",
        "question": QUESTION,
        "definition": "Share of right answers: mean of the first and the last place, less that of the inner places, "
        "in percentage points; mean over the lengths with right and wrong answers (this toolkit's own).",
        "source": SOURCE,
        "parameters": {"margin": margin, "half": half, "seed": seed},
        "evidence": tuple(case.unit for case in cases),
        "columns": _COLUMNS,
        "table": tuple(_rows(cases, each, seed)),
        "figures": tuple(middle_figures(each)),
    }
    details = (*_details(each), *(loss for loss in losses if loss is not None), *_references(run, half))
    if not told:
        return Finding(
            **said,
            headline="Whether the middle is lost cannot be told",
            claim=_unmeasured(cases, each),
            verdict="inconclusive",
            measured=Measurement(name=_U, value=None, unit="points", n=len(cases), dropped=left_out.total),
            details=details,
            notes=left_out.notes(),
        )
    return _finding(said, each, told, left_out, margin, details)


_U = "U: both ends less the inner places (this toolkit's own)"
_COLUMNS = (
    "length_tokens",
    "place",
    "num_prompts",
    "num_right",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "fitted_accuracy",
    "answer_loss_nats",
    "answer_loss_low",
    "answer_loss_high",
)


def _cases(traces: list[Trace], left_out: LeftOut) -> Iterator[_Case]:
    for trace, outcome in answered(traces, left_out):
        where = depth(trace)
        if where is None:
            left_out.add("the sample does not say where its answer stands")
            continue
        loss = outcome.answer_loss
        yield _Case(
            prompt=trace.sample.name,
            unit=trace.unit,
            length=length(trace),
            place=where,
            correct=bool(outcome.correct),
            loss=loss if finite(loss) else None,
        )


def _at(cases: Sequence[_Case], profile: PlaceProfile) -> list[_Case]:
    return [case for case in cases if case.length == profile.length]


def _loss_of(cases: Sequence[_Case], seed: int) -> tuple[float, float, float] | None:
    """Return mean and interval's ends of the answer's loss; None where it is not known of two prompts."""
    known = [(case.prompt, case.loss) for case in cases if case.loss is not None]
    interval = cluster_bootstrap([loss for _, loss in known], [name for name, _ in known], seed=seed) if known else None
    if interval is None:
        return None
    return float(np.mean([loss for _, loss in known])), interval.low, interval.high


def _rows(cases: Sequence[_Case], each: Sequence[PlaceProfile], seed: int) -> Iterator[tuple[JsonValue, ...]]:
    fits = {(p.length, x): y for p in each for x, y in zip(p.places, _curve(p), strict=True)}
    for at, place in sorted({(case.length, case.place) for case in cases}):
        here = [case for case in cases if (case.length, case.place) == (at, place)]
        right = sum(case.correct for case in here)
        exact = clopper_pearson(right, len(here))
        assert exact is not None
        numbers = (right / len(here), exact.low, exact.high, fits.get((at, place)), *(_loss_of(here, seed) or ()))
        shown = [None if number is None else float(f"{number:.4g}") for number in numbers]
        yield (at, place, len(here), right, *shown, *(None for _ in range(7 - len(shown))))


def _curve(profile: PlaceProfile) -> list[float]:
    fitted: list[float] = fitted_curve(profile.places, profile.right / profile.asked, profile.places).tolist()
    return fitted


def _loss(cases: Sequence[_Case], profile: PlaceProfile, seed: int) -> Measurement | None:
    """Return how far the answer's loss at inner places lies above that at both ends; it has no ceiling."""
    by_place = [_loss_of([case for case in cases if case.place == place], seed) for place in profile.places]
    if any(each is None for each in by_place):
        return None
    weights = -end_weights(len(profile.places))[0]
    mean, low, high = np.array(by_place).T
    value = float((weights @ mean).round(9))
    ends = np.where(weights > 0, mean - low, high - mean), np.where(weights > 0, high - mean, mean - low)
    below, above = (float(np.sqrt(((weights * end) ** 2).sum())) for end in ends)
    return Measurement(
        name=f"answer loss at inner places less that at both ends, at {profile.length:,} tokens",
        value=value,
        unit="nats per token",
        interval=Interval(low=value - below, high=value + above, method="square-and-add, from BCa of each place"),
        n=profile.n,
    )


def _details(each: Sequence[PlaceProfile]) -> Iterator[Measurement]:
    for profile in each:
        where = f"at {profile.length:,} tokens"
        kinds = (
            ("", profile.values, profile.value_interval),
            ("over the worst inner place, ", profile.indices, profile.index_interval),
            ("of the fitted curve, ", profile.fitted, profile.fitted_interval),
        )
        for kind, found, interval in kinds:
            for name, value in found.items():
                yield Measurement(
                    name=f"{name} {kind}{where}", value=value, unit="points", interval=interval(name), n=profile.n
                )


def _references(run: Run | Trace | Iterable[Trace], half: str | None) -> Iterator[Measurement]:
    """Yield what is answered without the gold, and with it alone, where the run has such conditions."""
    kept = run if hasattr(run, "traces") or hasattr(run, "dataset") else list(run)
    for role, name in (("needle_absent", "right without the gold"), ("gold_only", "right with the gold alone")):
        known = [outcome for _, outcome in answered(selected(kept, role=role, half=half), LeftOut())]
        right = sum(bool(outcome.correct) for outcome in known)
        if known:
            yield Measurement(
                name=name, value=right / len(known), interval=clopper_pearson(right, len(known)), n=len(known)
            )


def _prompts(n: int) -> str:
    return f"n = {n} prompt{'' if n == 1 else 's'}"


def _unmeasured(cases: list[_Case], each: Sequence[PlaceProfile]) -> str:
    if not cases:
        return "No prompt was answered whose answer stands at a known place, so nothing can be said of the middle."
    if not each:
        num = len({case.place for case in cases})
        stand = "one place" if num == 1 else "two places" if num == 2 else "fewer than three places at each length"
        return (
            f"The answers stand at {stand}, so it cannot be told whether the middle is lost; three are needed, at one "
            f"length ({_prompts(len(cases))})."
        )
    parts = [
        f"every answer is {name} at {listed([profile.length for profile in some])} tokens"
        for name, some in (
            ("right", [profile for profile in each if profile.right.sum()]),
            ("wrong", [profile for profile in each if not profile.right.sum()]),
        )
        if some
    ]
    return f"Whether the middle is lost cannot be told: {' and '.join(parts)} ({_prompts(len(cases))})."


def _finding(
    said: dict[str, Any],
    each: list[PlaceProfile],
    told: list[PlaceProfile],
    left_out: LeftOut,
    margin: float,
    details: tuple[Measurement, ...],
) -> Finding:
    observed = np.mean([[profile.values[name] for name in NUMBERS] for profile in told], axis=0)
    shuffled = np.mean([profile.shuffled for profile in told], axis=0)
    p_value = both_ends(observed, shuffled)
    intervals = {name: _pooled(told, index) for index, name in enumerate(NUMBERS)}
    n = sum(profile.n for profile in told)
    least = min(intervals["primacy"].high, intervals["recency"].high)
    verdict: Verdict = "supported" if p_value < ALPHA else "refuted" if least <= margin else "inconclusive"
    adjusted = dict(zip([p.length for p in each], holm([p.p_value for p in each]), strict=True))
    lost = [at for at, p in adjusted.items() if p < ALPHA]
    pooled = [
        Measurement(name=name, value=float(observed[index]), unit="points", interval=intervals[name], n=n)
        for index, name in enumerate(NUMBERS)
        if index
    ]
    if lost:
        name = f"shortest length that loses the middle, of {listed([profile.length for profile in each])}"
        pooled.append(Measurement(name=name, value=lost[0], unit="tokens", n=sum(profile.n for profile in each)))
    low, high = np.quantile(shuffled[:, 0], [0.025, 0.975])
    where = listed([profile.length for profile in told])
    return Finding(
        **said,
        headline=_headline(verdict, _from(lost, told), where, observed, margin),
        claim=_claim(verdict, told, _from(lost, told), float(observed[0]), intervals, p_value, margin, n),
        verdict=verdict,
        measured=Measurement(
            name=f"{_U}, at {where} tokens",
            value=float(observed[0]),
            unit="points",
            interval=intervals["U"],
            n=n,
            dropped=left_out.total,
        ),
        control=Measurement(
            name="the same with places shuffled among the prompts of each length",
            value=float(shuffled[:, 0].mean()),
            unit="points",
            interval=Interval(low=float(low), high=float(high), method=f"{DRAWS:,} permutations"),
            n=n,
        ),
        comparison=Comparison(
            name="both ends above the inner places, the larger of two one-sided p-values against shuffled places",
            p_value=p_value,
            p_is_bound=p_value <= 1.001 / (1 + DRAWS),
            n=n,
        ),
        details=(*pooled, *details),
        notes=tuple(_notes(left_out, each, adjusted, intervals, verdict, margin, n)),
    )


def _pooled(told: Sequence[PlaceProfile], number: int) -> Interval:
    return square_and_add([part for p in told for part in p.parts(p.weights[number] / len(told))])


def _notes(
    left_out: LeftOut,
    each: Sequence[PlaceProfile],
    adjusted: dict[int, float],
    intervals: dict[str, Interval],
    verdict: Verdict,
    margin: float,
    n: int,
) -> Iterator[str]:
    yield from left_out.notes()
    tests = ", ".join(f"{at:,} tokens {p_text(p, DRAWS)}" for at, p in adjusted.items())
    yield f"Length by length, adjusted for their number (Holm): {tests}."
    for profile in each:
        by_chance = np.mean(position_u(profile))
        yield (
            f"The U-index over the worst inner place at {profile.length:,} tokens holds the choice of that place: with "
            f"places shuffled it is {by_chance:.0f} points."
        )
    if verdict == "inconclusive":
        widest = max(intervals[name].high - intervals[name].low for name in ("primacy", "recency")) / 2
        yield f"To tell {margin:g} points, about {int(np.ceil(n * (widest / margin) ** 2)):,} prompts would do."


def position_u(profile: PlaceProfile) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the U-index of the raw rates with places shuffled, in points, `[draw]`."""
    rates = 100 * profile.shuffled_rates
    return np.asarray((rates[:, 0] + rates[:, -1]) / 2 - rates[:, 1:-1].min(axis=1))


def _from(lost: Sequence[int], told: Sequence[PlaceProfile]) -> str:
    """Return at which lengths the middle is lost, in words; empty where no length shows it by itself."""
    if not lost:
        return ""
    longer = [profile.length for profile in told if profile.length >= lost[0]]
    return f"from {lost[0]:,} tokens on" if len(longer) > 1 and set(longer) <= {*lost} else f"at {listed(lost)} tokens"


def _headline(verdict: Verdict, lost: str, where: str, observed: Any, margin: float) -> str:
    if verdict == "supported":
        return f"The middle is lost {lost or f'at {where} tokens'}"
    if verdict == "refuted":
        return "The middle is not lost" if max(observed[1:]) <= margin else "One end is ahead, and it is no U"
    return "Whether the middle is lost cannot be told"


def _claim(
    verdict: Verdict,
    told: Sequence[PlaceProfile],
    lost: str,
    u: float,
    intervals: dict[str, Interval],
    p_value: float,
    margin: float,
    n: int,
) -> str:
    several = len(told) > 1
    over = f"{'Over the lengths' if several else 'At'} {listed([p.length for p in told])} tokens"
    tail = f"(U {u:.0f} points {intervals['U']}; {p_text(p_value, DRAWS)}, {_prompts(n)})"
    if verdict == "refuted":
        less = [name for name in ("primacy", "recency") if intervals[name].high <= margin]
        ends = {"primacy": "the first place", "recency": "the last place"}
        said = " and ".join(ends[name] for name in less)
        are = "are" if len(less) > 1 else "is"
        return f"{over} {said} {are} not ahead of the places between by more than {margin:g} points {tail}."
    if verdict == "inconclusive":
        return f"{over} a U cannot be told from chance {tail}."
    right, asked = (np.sum([getattr(p, name)[list(at)].sum() for p in told for at in [_ends(p)]]) for name in _COUNTS)
    inner, of = (np.sum([getattr(p, name)[_middle(p)] for p in told]) for name in _COUNTS)
    by_itself = f" (by itself {lost})" if several and lost else ""
    return (
        f"{over} the middle is lost{by_itself}: {right} of {asked} are right with the answer first or last, {inner} of "
        f"{of} with it in the middle {tail}."
    )


_COUNTS = ("right", "asked")


def _ends(profile: PlaceProfile) -> tuple[int, int]:
    return 0, len(profile.places) - 1


def _middle(profile: PlaceProfile) -> int:
    """Return the index of the inner place that is nearest to the middle, never of the worst."""
    places = np.array(profile.places)
    return 1 + int(np.abs(places[1:-1] - (places[0] + places[-1]) / 2).argmin())

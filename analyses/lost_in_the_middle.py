"""Whether an answer in the middle of the context is lost, and from what length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import JsonValue

from probe.analyses.figures.middle import middle_figures
from probe.analyses.figures.positions import listed
from probe.analyses.measures.depth_indices import position_indices
from probe.analyses.measures.ends_and_middle import end_weights, fitted_curve
from probe.analyses.measures.place_profile import DRAWS, PlaceProfile, holm, profiles
from probe.analysis import analysis
from probe.finding import Comparison, Finding, Interval, Measurement, Verdict
from probe.intervals import clopper_pearson, cluster_bootstrap, p_text
from probe.selection import LeftOut, answered, depth, fact, finite, length, selected

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
    points. Beside them stand the same three over the worst inner place (the U-index, which has the choice of that place
    in it), and those of a parabola fitted to the rates. All of these are this toolkit's own: the paper has curves and
    no number. Lengths without right and wrong answers are left out: ceiling or floor hides what places do.

    A length loses the middle where both ends lie above the inner places, each against places shuffled among its
    prompts, so that a profile that only rises or only falls does not; p < 0.01, adjusted for their number (Holm).
    Supported: a length does; the headline is U at the longest of these, else at the longest of all. Refuted: at every
    length primacy or recency is at most `margin` points with 97.5 % certainty.

    What it does not mean: it does not say why the middle is lost; `document_attention` shows where the model looks. A
    profile that only rises or falls is no U and is refuted here, though position matters in it (`position_bias`). A
    length without right and wrong answers says nothing.
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
        "in percentage points, at the longest length that loses the middle, or of all (this toolkit's own).",
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
    return _finding(said, told, left_out, margin, details)


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
        if fact(trace, "given") not in (None, "all"):
            left_out.add("the prompt holds less than the whole text")
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
    told: list[PlaceProfile],
    left_out: LeftOut,
    margin: float,
    details: tuple[Measurement, ...],
) -> Finding:
    adjusted = dict(zip([p.length for p in told], holm([p.p_value for p in told]), strict=True))
    lost = [at for at, p in adjusted.items() if p < ALPHA]
    shown = [profile for profile in told if not lost or profile.length in lost][-1]
    flat = all(_behind(profile, margin) for profile in told)
    verdict: Verdict = "supported" if lost else "refuted" if flat else "inconclusive"
    where, p_value = f"{shown.length:,} tokens", adjusted[shown.length]
    low, high = np.quantile(shown.shuffled[:, 0], [0.025, 0.975])
    if lost:
        name = "shortest length that loses the middle"
        details = (Measurement(name=name, value=lost[0], unit="tokens", n=sum(p.n for p in told)), *details)
    return Finding(
        **said,
        headline={
            "supported": f"The middle is lost {_from(lost, told)}",
            "refuted": "The middle is not lost",
            "inconclusive": "Whether the middle is lost cannot be told",
        }[verdict],
        claim=_claim(verdict, shown, lost, told, margin, p_value),
        verdict=verdict,
        measured=Measurement(
            name=f"{_U}, at {where}",
            value=shown.values["U"],
            unit="points",
            interval=shown.value_interval("U"),
            n=shown.n,
            dropped=left_out.total,
        ),
        control=Measurement(
            name=f"the same with places shuffled among the prompts, at {where}",
            value=float(shown.shuffled[:, 0].mean()),
            unit="points",
            interval=Interval(low=float(low), high=float(high), method=f"{DRAWS:,} permutations"),
            n=shown.n,
        ),
        comparison=Comparison(
            name="both ends above the inner places, the larger of two one-sided p-values against shuffled places, "
            f"adjusted for {len(told)} length{'' if len(told) == 1 else 's'} (Holm)",
            p_value=p_value,
            p_is_bound=p_value <= 1.001 * len(told) / (1 + DRAWS),
            n=shown.n,
        ),
        details=details,
        notes=tuple(_notes(left_out, told, adjusted, shown, verdict, margin)),
    )


def _behind(profile: PlaceProfile, margin: float) -> list[str]:
    """Return the ends that are not ahead of the inner places by more than the margin, with 97.5 % certainty."""
    ends = {"primacy": "the first place", "recency": "the last place"}
    return [words for name, words in ends.items() if profile.value_interval(name).high <= margin]


def _notes(
    left_out: LeftOut,
    told: Sequence[PlaceProfile],
    adjusted: dict[int, float],
    shown: PlaceProfile,
    verdict: Verdict,
    margin: float,
) -> Iterator[str]:
    yield from left_out.notes()
    tests = ", ".join(f"{at:,} tokens {p_text(p)}" for at, p in adjusted.items())
    yield f"Length by length, adjusted for their number (Holm): {tests}."
    if len(told) > 1:
        which = "that loses the middle" if verdict == "supported" else "with right and wrong answers"
        yield f"U is that of the longest length {which}; its interval is not adjusted for the choice."
    by_chance = "; ".join(f"{np.mean(_index_by_chance(p)):.0f} points at {p.length:,} tokens" for p in told)
    yield f"The U-index holds the choice of the worst inner place: with places shuffled it is {by_chance}."
    if verdict == "inconclusive":
        intervals = [shown.value_interval(name) for name in ("primacy", "recency")]
        widest = max(interval.high - interval.low for interval in intervals) / 2
        enough = int(np.ceil(shown.n * (widest / margin) ** 2))
        yield f"To tell {margin:g} points at {shown.length:,} tokens, about {enough:,} prompts would do."


def _index_by_chance(profile: PlaceProfile) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the U-index over the worst inner place with places shuffled, in points, `[draw]`."""
    return np.asarray(position_indices(100.0 * profile.shuffled_rates)["U"])


def _from(lost: Sequence[int], told: Sequence[PlaceProfile]) -> str:
    """Return at which lengths the middle is lost, in words."""
    if not lost:
        return ""
    longer = [profile.length for profile in told if profile.length >= lost[0]]
    return f"from {lost[0]:,} tokens on" if len(longer) > 1 and set(longer) <= {*lost} else f"at {listed(lost)} tokens"


def _claim(
    verdict: Verdict,
    shown: PlaceProfile,
    lost: Sequence[int],
    told: Sequence[PlaceProfile],
    margin: float,
    p_value: float,
) -> str:
    at = f"at {shown.length:,} tokens"
    u = f"U {shown.values['U']:.0f} points {shown.value_interval('U')}"
    tail = f"({u}; {p_text(p_value)}, {_prompts(shown.n)})"
    if verdict == "refuted":
        behind = _behind(shown, margin)
        said, are = " and ".join(behind), "are" if len(behind) > 1 else "is"
        others = f" (nor is there a U at {listed([p.length for p in told[:-1]])} tokens)" if len(told) > 1 else ""
        return (
            f"The middle is not lost: {at} {said} {are} not ahead of the places between by more than {margin:g} points"
            f"{others} {tail}."
        )
    if verdict == "inconclusive":
        tried = f", nor at {listed([p.length for p in told[:-1]])} tokens" if len(told) > 1 else ""
        return f"Whether the middle is lost cannot be told {at}{tried} {tail}."
    (first, last), (asked, of) = shown.right[[0, -1]], shown.asked[[0, -1]]
    inner, between = shown.right[1:-1].sum(), shown.asked[1:-1].sum()
    rest = [profile.length for profile in told if profile.length not in lost]
    others = f"; at {listed(rest)} tokens no U is seen" if rest else ""
    where = "" if len(lost) == 1 else f"{at} "
    return (
        f"The middle is lost {_from(lost, told)}: {where}{first} of {asked} are right with the answer first, {last} of "
        f"{of} with it last, {inner} of {between} between{others} {tail}."
    )

"""Whether the answers lost with the found heads are those that stand far back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probe import chart
from probe.analyses.measures.ablation_effect import difference, no_narrower
from probe.analyses.measures.ablation_reading import AblationReading, Floats, controls_of, read
from probe.analyses.measures.answer_distance import answer_distance, far_less_near, of_prompts, shuffled_p
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Comparison, Figure, Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS, p_text
from probe.selection import LeftOut, answered, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Are the answers lost without these heads those that stand far back?"
SOURCE = (
    "This toolkit's own, after the claim of Hong et al. 2024 (arXiv 2410.08703) that positional heads are pivotal on "
    "long input, whose figures are not verified"
)
_MEASURED = "right answers lost to the removal, far answers less near ones"
_COLUMNS = ("distance_from", "distance_to", "num_prompts", "difference", "difference_low", "difference_high")


@analysis(question=QUESTION, source=SOURCE)
def ablation_by_distance(
    run: Run | Trace | Iterable[Trace],
    *,
    treatment: str | None = None,
    margin: float = 10.0,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Compare what removing the found heads does to answers that stand far from the question and to those near it.

    Each prompt's effect is its right answer with the heads removed, less its mean over random draws of as many others
    (in percentage points). An answer is far where it stands further from the prompt's end than the median one. The
    headline is the mean effect on far answers less that on near ones, resampled over prompts within both and over
    draws, and tested by shuffling distances between prompts. Supported: it lies below 0 with 95 % certainty, p < 0.05,
    and far answers are lost. Refuted: the interval, no narrower than so few prompts allow, lies within `margin` points
    of 0. `treatment` names the condition, where there are several. This toolkit's own.

    What it does not mean: supported does not mean that near answers do without the heads, nor that distance is the
    cause: what stands far back may be harder for other reasons. What breaks answers at any distance is refuted here,
    and `head_ablation` says whether the heads are needed at all. Heads must be found on other samples than these.
    """
    left_out = LeftOut()
    traces = selected(run, role="treatment", half=half)
    names = sorted({trace.condition for trace in traces})
    if treatment is not None and treatment not in names:
        raise UsageError(f"no treatment {treatment!r}; there are {names}")
    chosen = treatment or (names[0] if names else None)
    reading, distances = None, np.zeros(0)
    evidence: tuple[str, ...] = ()
    if chosen is not None:
        treated = answered([trace for trace in traces if trace.condition == chosen], left_out)
        controls, _ = controls_of(chosen, answered(selected(run, role="control", half=half), left_out))
        placed = {t.sample.name: at for t, _ in treated if (at := answer_distance(t.sample)) is not None}
        if len(treated) > len(placed):
            left_out.add("the sample does not say where its answer stands", len(treated) - len(placed))
        treated = [each for each in treated if each[0].sample.name in placed]
        reading = read(treated, controls, []) if treated else None
        if reading is not None:
            distances = np.array([placed[prompt] for prompt in reading.prompts], np.float64)
            evidence = tuple(t.unit for t, _ in [*treated, *controls] if t.sample.name in reading.prompts)
    said: dict[str, Any] = {
        "analysis": "ablation_by_distance",
        "question": QUESTION,
        "definition": "Right answers with the found heads removed, less with as many others removed (mean over draws): "
        "mean over answers further from the prompt's end than the median, less that over the others (this toolkit's "
        "own).",
        "source": SOURCE,
        "parameters": {"treatment": treatment, "margin": margin, "half": half, "seed": seed},
        "evidence": evidence,
        "columns": _COLUMNS,
    }
    far = distances > np.median(distances) if len(distances) else np.zeros(0, bool)
    if reading is None or min(int(far.sum()), int((~far).sum())) < 2:
        reason = (
            "No prompt was answered both with the found heads removed and with others removed"
            if reading is None
            else "Answers do not stand at different distances in two prompts each"
        )
        return Finding(
            **said,
            claim=f"{reason}, so whether distance matters cannot be told.",
            verdict="inconclusive",
            measured=Measurement(name=_MEASURED, value=None, unit="points", n=len(far), dropped=left_out.total),
            notes=(*left_out.notes(), "It needs traces with the roles treatment and control."),
        )
    return _finding(said, reading, distances, far, left_out, margin, seed)


def _finding(
    said: dict[str, Any],
    reading: AblationReading,
    distances: Floats,
    far: NDArray[np.bool_],
    left_out: LeftOut,
    margin: float,
    seed: int,
) -> Finding:
    value, interval, each = far_less_near(reading, far, seed)
    p = shuffled_p(each, far, seed)
    groups = [_group(reading, which, seed) for which in (far, ~far)]
    (far_value, far_ends), (near_value, near_ends) = groups
    verdict: Verdict = "inconclusive"
    n, fewest = len(far), min(int(far.sum()), int((~far).sum()))
    if n >= FEWEST_PROMPTS:
        low, high = no_narrower(interval, fewest)
        if interval.high < 0 and p < 0.05 and far_ends is not None and far_ends.high < 0:
            verdict = "supported"
        elif low >= -margin and high <= margin:
            verdict = "refuted"
    middle = float(np.median(distances))
    numbers = (
        f"{far_value:+.0f} points {far_ends or ''} more than {middle:,.0f} tokens back, {near_value:+.0f} "
        f"{near_ends or ''} nearer ({len(reading.heads) or 'the'} heads removed, against as many others; n = {n})"
    )
    claims = {
        "supported": f"What removing these heads costs is far answers: {numbers}, {p_text(p)}.",
        "refuted": f"Removing these heads costs far answers no more than near ones, give or take {margin:g} points: "
        f"{numbers}.",
        "inconclusive": "Whether removing these heads costs far answers more than near ones cannot be told: "
        f"{numbers}.",
    }
    notes = [
        *left_out.notes(),
        f"Refuted means: the two differ by less than {margin:g} percentage points with 95 % certainty; with so many "
        "prompts as these the interval is never taken to be narrower than if all of a group agreed.",
        "Far and near are halves of these prompts: what the heads do at distances that were not tried is not known.",
    ]
    return Finding(
        **said,
        headline={
            "supported": "Without these heads it is far answers that are lost",
            "refuted": "Without these heads far answers are lost no more than near ones",
            "inconclusive": "Whether these heads serve far answers cannot be told",
        }[verdict],
        claim=claims[verdict],
        verdict=verdict,
        measured=Measurement(
            name=_MEASURED, value=value, unit="points", interval=interval, n=n, dropped=left_out.total
        ),
        control=Measurement(
            name="the effect on near answers", value=near_value, unit="points", interval=near_ends, n=int((~far).sum())
        ),
        comparison=Comparison(
            name="distances shuffled between prompts", difference=value, interval=interval, p_value=p, n=n
        ),
        details=(
            Measurement(
                name="the effect on far answers", value=far_value, unit="points", interval=far_ends, n=int(far.sum())
            ),
        ),
        table=tuple(_rows(reading, distances, seed)),
        figures=(_figure(reading, distances, seed),),
        notes=tuple(notes),
    )


def _group(reading: AblationReading, which: NDArray[np.bool_], seed: int) -> tuple[float, Interval | None]:
    value, interval, _ = difference(of_prompts(reading, which), "accuracy", seed)
    return value, interval


def _bins(distances: Floats) -> Iterator[tuple[float, float, NDArray[np.bool_]]]:
    """Yield at most five bins of about as many prompts each, near first."""
    edges = np.unique(np.quantile(distances, np.linspace(0, 1, 6)))
    for index, (low, high) in enumerate(pairwise(edges)):
        last = index == len(edges) - 2
        inside = (distances >= low) & ((distances <= high) if last else (distances < high))
        if inside.any():
            yield float(distances[inside].min()), float(distances[inside].max()), inside


def _rows(reading: AblationReading, distances: Floats, seed: int) -> Iterator[tuple[JsonValue, ...]]:
    for low, high, inside in _bins(distances):
        value, ends = _group(reading, inside, seed)
        numbers: Sequence[float | None] = (value, *((None, None) if ends is None else (ends.low, ends.high)))
        yield (int(low), int(high), int(inside.sum()), *(None if x is None else float(f"{x:.4g}") for x in numbers))


def _figure(reading: AblationReading, distances: Floats, seed: int) -> Figure:
    rows = [*_rows(reading, distances, seed)]
    x = [(float(str(row[0])) + float(str(row[1]))) / 2 for row in rows]
    y, low, high = ([np.nan if row[i] is None else float(str(row[i])) for row in rows] for i in (3, 4, 5))
    return chart.figure(
        "effect_by_distance",
        "What removing the heads does to answers, by how far back they stand",
        "Right answers with the found heads removed, less with as many others removed, in percentage points, with 95 % "
        "intervals over prompts and draws.",
        [chart.line("effect", x, y, low, high)],
        {
            "xaxis": chart.axis("distance from the answer's place to the prompt's end, in tokens"),
            "yaxis": chart.axis("effect in percentage points"),
            "shapes": [chart.rule(y=0)],
        },
    )

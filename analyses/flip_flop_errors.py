"""Whether a model's memory of one bit glitches, and where its attention is when it does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import JsonValue
from scipy import stats

from probe import chart
from probe.analyses.measures.write_attention import Looks, looks_of, write_attention
from probe.analysis import analysis
from probe.finding import Comparison, Figure, Finding, Interval, Measurement, Verdict
from probe.intervals import clopper_pearson, p_text
from probe.selection import LeftOut, answered, fact, length, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Does the model now and then read the wrong bit, and where does it look when it does?"
SOURCE = (
    "Flip-flop language and read error: Liu et al. 2023, Exposing Attention Glitches, arXiv 2306.00946, sections 3-4; "
    "lost, mistaken or diluted by attention to the last write: this toolkit's own"
)
TRAINED_P = 0.8
"""Share of ignored instructions in the paper's training distribution: what the others are held against."""
AGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Bounds of the classes of the last write's age, in pairs."""


@dataclass(frozen=True)
class _Read:
    """The last read of one text, and how it went."""

    prompt: str
    unit: str
    p: float
    length: int
    age: int
    wrong: bool
    looks: Looks | None
    """Each head's attention to the last write's bit, and to earlier writes."""


@analysis(question=QUESTION, source=SOURCE, needs={"span_mass": {}}, does_without_attention=True)
def flip_flop_errors(
    run: Run | Trace | Iterable[Trace],
    *,
    margin: float = 0.01,
    half: Literal["find", "test", "both"] | None = None,
    condition: str | None = None,
    seed: int = 0,
) -> Finding:
    """Measure the share of last reads that are wrong, by language FFL(p), by length and by the age of the last write.

    Measured are reads with nothing done, or under the condition that is named (an intervention's, say).
    Each text asks one question, so that reads are independent and their intervals exact. The headline is the language
    with the most errors, beside FFL(0.8), or the language nearest to it; the test is Fisher's exact one between the
    two, one-sided, times the number of languages. Supported: p < 0.05 while the model can do the task (its errors on
    the other language lie below 25 % with 95 % certainty); refuted: every language's errors lie below `margin`.

    Attention is `span_mass` of the row that reads: to the bit of the last write, and to earlier writes. It is shown for
    the head that gives the last write most where the model reads rightly. What it says of the cause is this toolkit's
    own: the write is *mistaken* where in wrong reads that head gives earlier writes more than the last, *lost* where it
    gives neither half of what right reads give the last. Over right reads it is measured how attention to the last
    write is *diluted* as it grows old, and *drifts* to earlier ones.

    What it does not mean: errors on this language say nothing of how often a model glitches on ordinary text, and a
    large model asked in words may fail for want of the task. Refuted speaks of the languages that were read: rarer
    writes make errors that these may not. Attention does not prove that a head is the cause.
    """
    left_out = LeftOut()
    traces = selected(run, half=half) if condition is None else selected(run, role=None, half=half)
    reads = list(_reads([t for t in traces if condition in (None, t.condition)], left_out))
    places = sorted({(read.p, read.length) for read in reads})
    said: dict[str, Any] = {
        "analysis": "flip_flop_errors",
        "question": QUESTION,
        "definition": "Share of texts whose last read is answered with another token than the bit last written"
        + ("." if condition is None else f", under the condition {condition}."),
        "source": SOURCE,
        "parameters": {"margin": margin, "half": half, "condition": condition, "seed": seed},
        "evidence": tuple(read.unit for read in reads),
        "columns": ("p_ignored", "length_tokens", "age_pairs", "num_reads", "num_wrong", "error", "low", "high"),
        "table": tuple(_rows(reads)),
        "figures": tuple(_figures(reads)),
    }
    if len(places) < 2:
        reason = "No flip-flop text was read" if not places else "All texts are of one language and length"
        return Finding(
            **said,
            headline="Whether the model's memory glitches cannot be told",
            claim=f"{reason}, so it cannot be told whether errors come with the language (n = {len(reads)}).",
            verdict="inconclusive",
            measured=Measurement(name=_ERROR, value=None, n=len(reads), dropped=left_out.total),
            notes=(*left_out.notes(), "Two languages FFL(p), or two lengths, are needed."),
        )
    return _finding(said, reads, places, left_out, margin, seed)


_ERROR = "wrong reads"


def _reads(traces: list[Trace], left_out: LeftOut) -> Iterator[_Read]:
    for trace, outcome in answered(traces, left_out):
        p, age = fact(trace, "p"), fact(trace, "age_pairs")
        if p is None or age is None:
            left_out.add("not a flip-flop text")
            continue
        yield _Read(
            prompt=trace.sample.name,
            unit=trace.unit,
            p=float(p),
            length=length(trace),
            age=int(age),
            wrong=not outcome.correct,
            looks=looks_of(trace),
        )


def _error(reads: Sequence[_Read]) -> tuple[int, int, Interval]:
    wrong, n = sum(read.wrong for read in reads), len(reads)
    interval = clopper_pearson(wrong, n)
    assert interval is not None
    return wrong, n, interval


def _by_age(reads: Sequence[_Read]) -> Iterator[tuple[int, int, list[_Read]]]:
    for low, high in zip(AGES, (*AGES[1:], 1 << 30), strict=True):
        here = [read for read in reads if low <= read.age < high]
        if here:
            yield low, high - 1, here


def _rows(reads: Sequence[_Read]) -> Iterator[tuple[JsonValue, ...]]:
    for p, at in sorted({(read.p, read.length) for read in reads}):
        here = [read for read in reads if (read.p, read.length) == (p, at)]
        ages = [(f"{low}-{high}" if high < 1 << 20 else f"{low} or more", some) for low, high, some in _by_age(here)]
        for age, some in (("all", here), *ages):
            wrong, n, interval = _error(some)
            yield p, at, age, n, wrong, round(wrong / n, 6), round(interval.low, 6), round(interval.high, 6)


def _figures(reads: Sequence[_Read]) -> Iterator[Figure]:
    if not reads:
        return
    data = []
    for index, p in enumerate(sorted({read.p for read in reads})):
        points = [(low, *_error(some)) for low, _, some in _by_age([read for read in reads if read.p == p])]
        at = [low * (1 + 0.03 * index) for low, *_ in points]
        data.append(
            chart.line(
                f"FFL({p:g})",
                at,
                [wrong / n for _, wrong, n, _ in points],
                [interval.low for *_, interval in points],
                [interval.high for *_, interval in points],
                color=chart.SERIES[index % len(chart.SERIES)],
                dash=chart.DASHES[index % len(chart.DASHES)],
                symbol=chart.SYMBOLS[index % len(chart.SYMBOLS)],
                text=[f"{wrong} of {n} wrong" for _, wrong, n, _ in points],
                hovertemplate="last write %{x:.0f} pairs ago or more: %{text}<extra></extra>",
            )
        )
    x = chart.axis("pairs since the last write (beginning of the class)", type="log")
    yield chart.figure(
        "errors_by_age",
        "Wrong reads by how long ago the bit was written",
        "Each point is a class of ages, twice as wide as the one before; bars are exact 95 % intervals. Half of all "
        "reads are wrong by guessing.",
        data,
        {"xaxis": x, "yaxis": chart.share_axis("wrong reads")},
    )


def _finding(
    said: dict[str, Any],
    reads: list[_Read],
    places: list[tuple[float, int]],
    left_out: LeftOut,
    margin: float,
    seed: int,
) -> Finding:
    of = {place: [read for read in reads if (read.p, read.length) == place] for place in places}
    # The control is chosen by its language alone, never by how it went.
    usual = min(places, key=lambda place: (abs(place[0] - TRAINED_P), place[1]))
    others = [place for place in places if place != usual]
    worst = max(others, key=lambda place: (_error(of[place])[0] / len(of[place]), place))
    (wrong, n, interval), (known_wrong, known_n, known) = _error(of[worst]), _error(of[usual])
    table = np.array([[wrong, n - wrong], [known_wrong, known_n - known_wrong]])
    p_value = min(1.0, len(others) * float(stats.fisher_exact(table, alternative="greater").pvalue))
    most = max(_error(of[place])[2].high for place in places)
    able = known.high < 0.25
    verdict: Verdict = "supported" if p_value < 0.05 and able else "refuted" if most <= margin else "inconclusive"
    where, before = _place(worst), _place(usual)
    numbers = f"{wrong / n:.1%} [{interval.low:.1%}, {interval.high:.1%}] of reads are wrong at {where}"
    beside = f"{known_wrong / known_n:.1%} [{known.low:.1%}, {known.high:.1%}] at {before}"
    account = write_attention(
        [(r.prompt, (r.p, r.length), r.age, r.wrong, r.looks) for r in reads if r.looks is not None], seed
    )
    claims = {
        "supported": f"The model's memory of one bit glitches: {numbers}, {beside} ({p_text(p_value)}, n = {n} and "
        f"{known_n}){account.clause}.",
        "refuted": f"No language or length has more than {margin:.2%} of its reads wrong: at most {numbers}, {beside} "
        f"(n = {n} and {known_n}).",
        "inconclusive": f"Whether the model's memory glitches cannot be told: {numbers}, {beside} ({p_text(p_value)}, "
        f"n = {n} and {known_n}).",
    }
    reasons = []
    if verdict == "inconclusive" and not able:
        reasons.append(
            f"The model cannot be shown to do the task at {before}: its errors may be up to {known.high:.0%}."
        )
    elif verdict == "inconclusive":
        needed = int(np.ceil(np.log(0.025) / np.log1p(-margin)))
        reasons.append(
            f"To say that errors lie below {margin:.2%}, {needed:,} reads without one are needed a language."
        )
    said["figures"] = (*said["figures"], *account.figures)
    return Finding(
        **said,
        headline={
            "supported": f"{wrong / n:.0%} of reads are wrong at {where}",
            "refuted": "No glitches",
            "inconclusive": "Whether the model's memory glitches cannot be told",
        }[verdict],
        claim=claims[verdict],
        verdict=verdict,
        measured=Measurement(
            name=f"{_ERROR} at {where}", value=wrong / n, interval=interval, n=n, dropped=left_out.total
        ),
        control=Measurement(name=f"{_ERROR} at {before}", value=known_wrong / known_n, interval=known, n=known_n),
        comparison=Comparison(
            name=f"Fisher's exact test, one-sided, times {len(others)}",
            difference=wrong / n - known_wrong / known_n,
            p_value=p_value,
            n=n + known_n,
        ),
        details=account.details,
        notes=(*left_out.notes(), *reasons, *account.notes),
    )


def _place(place: tuple[float, int]) -> str:
    return f"FFL({place[0]:g}), {place[1]:,} tokens"

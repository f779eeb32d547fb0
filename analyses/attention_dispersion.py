"""Whether attention flattens as the text grows longer, and which heads' does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from scipy import stats

from probe.analyses.figures.dispersion import dispersion_figures
from probe.analyses.measures.copying import read
from probe.analyses.measures.dispersion import Floats, Spread, falling, slope_ends, slopes, spreads
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS
from probe.selection import LeftOut, answered, has_top_keys, selected
from probe.withheld import Withheld

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.storage.trace_store import Run, Trace

QUESTION = "Does attention flatten as the text grows longer, and in which heads?"
SOURCE = (
    "Dispersed attention and the largest probability by length: Chi, Fan and Rudnicky 2023, Attention Alignment and "
    "Flexible Positional Embeddings, arXiv 2311.00684; the dispersion index, slopes and factors: this toolkit's own"
)
_COLUMNS = (
    "layer",
    "head",
    "disperses",
    "retrieves",
    "max_probability_shortest",
    "max_probability_longest",
    "slope_per_doubling",
    "p_adjusted",
    "normalised_entropy_shortest",
    "normalised_entropy_longest",
    "normalised_entropy_slope",
)
_MOST_ROWS = 64
LARGEST_Q = 0.01
"""Most of the heads named that may, on average, not disperse."""
_MEASURED = "largest probability of the heads that disperse, per doubling of the length"
_METHOD = "bootstrap over prompts, within lengths"


@analysis(
    question=QUESTION,
    source=SOURCE,
    needs={"entropy": {}, "max_probability": {}, "top_keys": {"k": 1}},
    does_without_attention=True,
)
def attention_dispersion(
    run: Run | Trace | Iterable[Trace],
    *,
    margin: float = 0.01,
    trained_length: int | None = None,
    head_threshold: float = 0.1,
    seed: int = 0,
) -> Finding:
    """Measure each head's normalised entropy and largest probability near the end of prompts of several lengths.

    The dispersion index (this toolkit's own) is the mean of H / ln(i + 1) over the last eighth of the queries i before
    the question (or the prompt's end), H their entropy: 1 for uniform attention at any length, falling with length for
    a head that spreads over a fixed number of keys. A head disperses where its largest probability falls by more than
    `margin` for each doubling of the length *and* its index rises. Heads are found on one half of the prompts
    (Student's test of the slope, Benjamini and Hochberg at 1 %) and tested on the other, where their mean slopes are
    the headline. Supported: it lies below -`margin` with 95 % certainty, and their index rises with the same certainty.
    Refuted: no head was found, and the mean slope over all heads lies within `margin`. The control is the mean slope of
    the heads that were not found; beside it stands uniform attention, whose largest probability is 1 / (i + 1).

    Heads that copy (see `retrieval_heads`, above `head_threshold` where answers are right) are shown apart, at the
    steps of the answer. Two factors for the logits at the longest length are given, neither of them tried: the
    log-length ratio, and the one that would bring the largest probability back to that of `trained_length` (without it:
    the shortest length) to first order, from d p / d factor = p (ln p + H). Layers that see a window alone cannot
    disperse beyond it, and their index falls.

    What it does not mean: that attention flattens does not say that answers are lost by it, nor that they would be
    without it; neither factor for the logits has been tried (`length-rescue` does). Refuted speaks of the lengths that
    were read.
    """
    if margin <= 0:
        raise UsageError(f"margin {margin}: expected a probability above 0")
    left_out = LeftOut()
    seen = [*spreads([each for each in selected(run) if each.outcome is None or not each.outcome.failed], left_out)]
    lengths = sorted({each.length for each in seen})
    said: dict[str, Any] = {
        "analysis": "attention_dispersion",
        "question": QUESTION,
        "definition": "Slope over log2 of the length of the mean largest probability in the last eighth of the "
        "queries before the question, and of H / ln(i + 1) there (the dispersion index, this toolkit's own).",
        "source": SOURCE,
        "parameters": {
            "margin": margin,
            "trained_length": trained_length,
            "head_threshold": head_threshold,
            "seed": seed,
        },
        "evidence": tuple(each.unit for each in seen),
        "columns": _COLUMNS,
    }
    fewest = min(
        (sum(e.length == at and e.half == h for e in seen) for at in lengths for h in ("find", "test")), default=0
    )
    if len(lengths) < 2 or fewest < 2:
        reason = (
            "No entropy and largest probability were captured (a model that has attention is needed)"
            if not seen
            else "All prompts are of one length"
            if len(lengths) < 2
            else "Each length needs two prompts in each half"
        )
        return Finding(
            **said,
            headline="Whether attention flattens with length cannot be told",
            claim=f"{reason}, so whether attention flattens with length cannot be told.",
            verdict="inconclusive",
            measured=Measurement(name=_MEASURED, value=None, n=len(seen), dropped=left_out.total),
            notes=left_out.notes(),
        )
    heads = _heads(seen, margin, _retrieving(answered(selected(run), LeftOut()), head_threshold))
    return _finding(said, seen, heads, lengths, left_out, margin, trained_length, seed)


@dataclass(frozen=True)
class _Heads:
    """Every head's slopes over both halves, and which heads the first half found."""

    exists: NDArray[np.bool_]
    found: NDArray[np.bool_]
    retrieves: NDArray[np.bool_]
    adjusted: Floats
    slope: Floats
    index_slope: Floats


def _retrieving(cases: Sequence[tuple[Trace, Outcome]], threshold: float) -> NDArray[np.bool_] | None:
    right = [(t, o) for t, o in cases if o.correct and has_top_keys(t) and not isinstance(t.sample.tokens, Withheld)]
    readings = [read(trace, outcome, "needle_value", "set", LeftOut()) for trace, outcome in right]
    scores = [reading.score for reading in readings if reading is not None]
    return np.asarray(np.mean(scores, axis=0) > threshold, np.bool_) if scores else None


def _heads(seen: Sequence[Spread], margin: float, retrieves: NDArray[np.bool_] | None) -> _Heads:
    finding = [each for each in seen if each.half == "find"]
    at = [each.length for each in finding]
    exists = np.asarray(np.isfinite(np.stack([e.normalised_entropy for e in seen])).all(axis=0), np.bool_)
    largest = np.nan_to_num(np.stack([each.max_probability for each in finding]))
    index = np.nan_to_num(np.stack([each.normalised_entropy for each in finding]))
    adjusted = np.ones(exists.shape)
    p = falling(largest, at, margin)[exists]
    adjusted[exists] = stats.false_discovery_control(p) if p.size else p
    every = [each.length for each in seen]
    return _Heads(
        exists=exists,
        found=exists & (adjusted < LARGEST_Q) & (slopes(index, at)[0] > 0),
        retrieves=np.zeros(exists.shape, np.bool_) if retrieves is None else retrieves,
        adjusted=adjusted,
        slope=slopes(np.nan_to_num(np.stack([each.max_probability for each in seen])), every)[0],
        index_slope=slopes(np.nan_to_num(np.stack([each.normalised_entropy for each in seen])), every)[0],
    )


def _finding(
    said: dict[str, Any],
    seen: Sequence[Spread],
    heads: _Heads,
    lengths: list[int],
    left_out: LeftOut,
    margin: float,
    trained_length: int | None,
    seed: int,
) -> Finding:
    tested = [each for each in seen if each.half == "test"]
    number, total = int(heads.found.sum()), int(heads.exists.sum())
    which = heads.found if number else heads.exists
    name = _MEASURED if number else "largest probability of all heads, per doubling of the length"
    measured = _slope(name, [float(e.max_probability[which].mean()) for e in tested], tested, seed, left_out.total)
    index = _slope(
        "dispersion index of those heads, per doubling of the length (this toolkit's own)",
        [float(each.normalised_entropy[which].mean()) for each in tested],
        tested,
        seed,
    )
    uniform = _slope(
        "largest probability of uniform attention, per doubling", [e.uniform for e in tested], tested, seed
    )
    rest = heads.exists & ~heads.found
    control = uniform
    if number and rest.any():
        values = [float(each.max_probability[rest].mean()) for each in tested]
        control = _slope("largest probability of the other heads, per doubling of the length", values, tested, seed)
    low, high = _ends(measured)
    verdict: Verdict = "inconclusive"
    if len(tested) >= FEWEST_PROMPTS:
        if number and high < -margin and _ends(index)[0] > 0:
            verdict = "supported"
        elif not number and -margin < low and high < margin:
            verdict = "refuted"
    apart = [*_apart(tested, heads, seed)]
    factors = [*_factors(seen, heads, lengths, trained_length)]
    value = measured.value or 0.0
    longest, shortest = lengths[-1], lengths[0]
    before, after = (_mean_at(tested, which, at) for at in (shortest, longest))
    numbers = (
        f"from {before:.2g} at {shortest:,} tokens to {after:.2g} at {longest:,}, {value:+.3f} "
        f"[{low:+.3f}, {high:+.3f}] for each doubling (n = {len(tested)} prompts that did not choose the heads)"
    )
    retrieving = (
        f"; {apart[0].name.split(',')[0]}: {apart[0].value:+.3f}" if apart and apart[0].value is not None else ""
    )
    claims = {
        "supported": f"{number} of {total} heads disperse: their largest probability falls {numbers}{retrieving}.",
        "refuted": f"Attention does not flatten: over all {total} heads the mean largest probability goes {numbers}.",
        "inconclusive": f"Whether attention flattens cannot be told: the largest probability of "
        f"{f'the {number} heads found' if number else 'all heads'} goes {numbers}.",
    }
    return Finding(
        **said,
        headline={
            "supported": f"{number} of {total} heads disperse as the text grows",
            "refuted": "Attention does not flatten with length",
            "inconclusive": "Whether attention flattens with length cannot be told",
        }[verdict],
        claim=claims[verdict],
        verdict=verdict,
        measured=measured,
        control=control,
        details=(index, *([uniform] if control is not uniform else []), *apart, *factors),
        table=tuple(_rows(seen, heads, lengths)),
        figures=tuple(dispersion_figures(tested, heads.found, heads.retrieves, heads.slope, heads.exists)),
        notes=tuple(_notes(left_out, heads, margin, apart, trained_length, shortest)),
    )


def _slope(name: str, values: Sequence[float], tested: Sequence[Spread], seed: int, dropped: int = 0) -> Measurement:
    at, array = [each.length for each in tested], np.asarray(values, np.float64)
    low, high = slope_ends(array, at, seed=seed)
    interval = Interval(low=low, high=high, method=_METHOD)
    value = float(slopes(array, at)[0])
    return Measurement(name=name, value=value, unit="probability", interval=interval, n=len(values), dropped=dropped)


def _ends(measurement: Measurement) -> tuple[float, float]:
    assert measurement.interval is not None
    return measurement.interval.low, measurement.interval.high


def _mean_at(seen: Sequence[Spread], which: NDArray[np.bool_], length: int) -> float:
    return float(np.mean([each.max_probability[which].mean() for each in seen if each.length == length]))


def _apart(tested: Sequence[Spread], heads: _Heads, seed: int) -> Iterator[Measurement]:
    """Yield the slopes of the retrieval heads at the answer, and near the end of the prompt."""
    which = heads.retrieves & heads.exists
    with_answer = [each for each in tested if each.at_answer is not None]
    if not which.any():
        return
    number = int(which.sum())
    heads_said = f"the {number} retrieval heads" if number > 1 else "the retrieval head"
    if len({each.length for each in with_answer}) > 1:
        values = [float(each.at_answer[which].mean()) for each in with_answer if each.at_answer is not None]
        yield _slope(f"largest probability of {heads_said} at the answer, per doubling", values, with_answer, seed)
    values = [float(each.max_probability[which].mean()) for each in tested]
    yield _slope(f"largest probability of {heads_said} near the end, per doubling", values, tested, seed)


def _factors(
    seen: Sequence[Spread], heads: _Heads, lengths: Sequence[int], trained: int | None
) -> Iterator[Measurement]:
    """Yield the factors for the logits at the longest length that would undo what the found heads lost."""
    longest = lengths[-1]
    usual = lengths[0] if trained is None else min(lengths, key=lambda at: (abs(at - trained), at))
    if usual >= longest or not heads.found.any():
        return
    far = [each for each in seen if each.length == longest]
    ratio = float(np.log(longest) / np.log(trained or usual))
    name = f"factor for the logits at {longest:,} tokens, log-length ratio to {trained or usual:,} (not tried)"
    yield Measurement(name=name, value=ratio, n=len(far))
    lost = _mean_at(seen, heads.found, usual) - _mean_at(seen, heads.found, longest)
    rate = float(np.mean([each.sharpening[heads.found].mean() for each in far]))
    if lost > 0 and rate > 0:
        name = f"factor for the logits at {longest:,} tokens that brings back the largest probability at {usual:,}"
        yield Measurement(name=f"{name}, to first order (not tried)", value=1 + lost / rate, n=len(far))


def _rows(seen: Sequence[Spread], heads: _Heads, lengths: Sequence[int]) -> Iterator[tuple[JsonValue, ...]]:
    mean = {
        (field, at): np.mean([getattr(each, field) for each in seen if each.length == at], axis=0)
        for field in ("max_probability", "normalised_entropy")
        for at in (lengths[0], lengths[-1])
    }
    order = sorted(
        ((int(layer), int(head)) for layer, head in np.argwhere(heads.exists)),
        key=lambda at: (not heads.found[at], heads.slope[at], at),
    )
    for at in order[: max(_MOST_ROWS, int(heads.found.sum()))]:
        numbers = (
            mean["max_probability", lengths[0]][at],
            mean["max_probability", lengths[-1]][at],
            heads.slope[at],
            heads.adjusted[at],
            mean["normalised_entropy", lengths[0]][at],
            mean["normalised_entropy", lengths[-1]][at],
            heads.index_slope[at],
        )
        yield (*at, bool(heads.found[at]), bool(heads.retrieves[at]), *(float(f"{number:.4g}") for number in numbers))


def _notes(
    left_out: LeftOut,
    heads: _Heads,
    margin: float,
    apart: Sequence[Measurement],
    trained_length: int | None,
    shortest: int,
) -> Iterator[str]:
    yield from left_out.notes()
    yield (
        f"A head disperses where its largest probability falls by more than {margin:g} for each doubling and its index "
        "rises: found on one half of the prompts, measured on the other. The table's slopes are over both halves."
    )
    yield "The dispersion index is this toolkit's own: 1 is uniform attention, whose largest probability is 1/(i + 1)."
    if not apart:
        yield "No retrieval heads apart: top_keys was not captured, or no head copies where answers are right."
    if trained_length is None:
        yield f"No trained length was given: factors lead back to the shortest length, {shortest:,} tokens."
    if int(heads.exists.sum()) > _MOST_ROWS:
        yield f"The table holds the heads found, or {_MOST_ROWS} with the steepest slopes."

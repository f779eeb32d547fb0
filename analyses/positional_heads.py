"""Which heads' long-distance attention is carried by slowly turning rotary pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from scipy import stats

from probe.analyses.figures.rope import rope_figures
from probe.analyses.measures.rope_reading import Floats, RopeReading, rope_readings
from probe.analyses.measures.state_readings import trained_length as length_of
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Suggestion, Verdict
from probe.intervals import FEWEST_PROMPTS, cluster_bootstrap, mean_ends
from probe.selection import LeftOut, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Which heads' long-distance attention do slowly turning rotary pairs carry?"
SOURCE = (
    "This toolkit's own operational definition, after the idea of Hong et al. 2024 (positional heads, arXiv "
    "2410.08703), whose formula is not verified; their figures cannot be compared with these"
)
FALSE_DISCOVERIES = 0.05
_MEASURED = "correlation of the low-frequency share with distance, positional heads"
_COLUMNS = (
    "layer",
    "head",
    "positional",
    "by_distance",
    "by_distance_low",
    "by_distance_high",
    "shuffled",
    "q_value",
    "by_logit",
    "by_logit_low",
    "by_logit_high",
)
_MOST_ROWS = 64


@analysis(question=QUESTION, source=SOURCE, needs={"rope_share": {}, "rope_correlation": {}})
def positional_heads(
    run: Run | Trace | Iterable[Trace],
    *,
    trained_length: int | None = None,
    nearest: int = 64,
    margin: float = 0.1,
    top: float = 10.0,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Find heads in which the share of low-frequency rotary pairs grows with the distance between query and key.

    The definition is this toolkit's own. c_d is what the rotary pair d adds to the logit; a pair is of low frequency
    where its wavelength is above `trained_length` (without it: what the model's configuration says). Variant 1, chosen
    before any ablation: Pearson's correlation of Σ_low abs(c_d) / Σ abs(c_d) with the distance, over sampled pairs of
    tokens at least `nearest` apart, none of them among the first four, one for each query and distance bin. Variant 2,
    shown beside it: mean correlation of c_d with the logit over low-frequency pairs, less that over the others.

    A head is positional where variant 1 is above `margin` on half of the prompts and above the same pairs with
    shuffled distances (paired one-sided Student's test, Benjamini and Hochberg at 5 % over all heads); these heads are
    measured on the other half. Supported: their mean there lies above `margin`, and above the shuffled control, with
    95 % certainty. Refuted: with 95 % certainty no head's mean is above `margin`. It suggests to remove the `top` per
    cent of heads by variant 1, whether or not they are positional: what they do for distant tokens only that shows.

    What it does not mean: the correlation says by which rotary pairs such a head tells far from near, not that the
    model needs it there (`ablation_by_distance` asks that), and no figure here can be held against the paper's.
    Position may come by other ways: masks, biases, learned vectors.
    """
    if not 0 <= margin < 1 or not 0 < top <= 100 or nearest < 0:
        raise UsageError(
            f"margin {margin}, top {top}, nearest {nearest}: expected a correlation from 0 to below 1, a percentage "
            "above 0 and at most 100, and a distance from 0 on"
        )
    left_out = LeftOut()
    traces = list(selected(run, half=half))
    trained = length_of(traces, trained_length)
    said: dict[str, Any] = {
        "analysis": "positional_heads",
        "question": QUESTION,
        "definition": "Correlation, over pairs of tokens, of the share of rotary pairs with wavelengths above "
        f"{'the training length' if trained is None else f'{trained:,} tokens'} with distance (this toolkit's own).",
        "source": SOURCE,
        "parameters": {
            "trained_length": trained_length,
            "nearest": nearest,
            "margin": margin,
            "top": top,
            "half": half,
            "seed": seed,
        },
        "columns": _COLUMNS,
    }
    readings = [] if trained is None else [*rope_readings(traces, trained, nearest, left_out)]
    shapes = {each.by_distance.shape for each in readings}
    halves = [sum(each.half == name for each in readings) for name in ("find", "test")]
    if trained is None or len(shapes) != 1 or min(halves) < 2:
        reason = (
            "The training length is not known (give `trained_length`)"
            if trained is None
            else "There are fewer than two prompts in a half of which a low-frequency share is known; the question is "
            "for models with rotary positions (RoPE)"
            if len(shapes) < 2
            else "The traces are of different models"
        )
        return Finding(
            **said,
            headline="Which heads are positional cannot be told",
            claim=f"{reason}, so which heads are positional cannot be told.",
            verdict="inconclusive",
            measured=Measurement(name=_MEASURED, value=None, n=len(readings), dropped=left_out.total),
            evidence=tuple(each.unit for each in readings),
            notes=tuple(left_out.notes()),
        )
    said["evidence"] = tuple(each.unit for each in readings)
    return _finding(said, readings, left_out, trained, nearest, margin, top, seed)


@dataclass(frozen=True)
class _Heads:
    """Every head's two scores over all prompts, and which heads the first half found."""

    exists: NDArray[np.bool_]
    found: tuple[tuple[int, int], ...]
    score: Floats
    ends: tuple[Floats, Floats]
    shuffled: Floats
    q: Floats
    by_logit: Floats
    by_logit_ends: tuple[Floats, Floats]

    @property
    def order(self) -> list[tuple[int, int]]:
        """All heads, the highest by variant 1 first."""
        places = [(int(layer), int(head)) for layer, head in np.argwhere(self.exists)]
        return sorted(places, key=lambda at: (-float(self.score[at]), at))


def _heads(readings: Sequence[RopeReading], margin: float, seed: int) -> _Heads:
    stacks = [np.stack([getattr(each, name) for each in readings]) for name in ("by_distance", "shuffled", "by_logit")]
    exists = np.isfinite(np.stack(stacks)).all(axis=(0, 1))
    score, shuffled, by_logit = (np.where(exists, each, 0.0) for each in stacks)
    finding = np.array([each.half == "find" for each in readings])
    gain = (score - shuffled)[finding]
    mean, error = gain.mean(axis=0), gain.std(axis=0, ddof=1) / np.sqrt(len(gain))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stats.t.sf(np.where(error > 0, mean / error, np.where(mean > 0, np.inf, -np.inf)), len(gain) - 1)
    q = np.ones(exists.shape)
    q[exists] = stats.false_discovery_control(p[exists])
    chosen = exists & (q <= FALSE_DISCOVERIES) & (score[finding].mean(axis=0) > margin)
    return _Heads(
        exists=exists,
        found=tuple((int(layer), int(head)) for layer, head in np.argwhere(chosen)),
        score=score.mean(axis=0),
        ends=mean_ends(score, seed=seed),
        shuffled=shuffled.mean(axis=0),
        q=q,
        by_logit=by_logit.mean(axis=0),
        by_logit_ends=mean_ends(by_logit, seed=seed),
    )


def _finding(
    said: dict[str, Any],
    readings: list[RopeReading],
    left_out: LeftOut,
    trained: int,
    nearest: int,
    margin: float,
    top: float,
    seed: int,
) -> Finding:
    heads = _heads(readings, margin, seed)
    tested = [each for each in readings if each.half == "test"]
    which = np.zeros_like(heads.exists)
    for at in heads.found or heads.order:
        which[at] = True
    name = _MEASURED if heads.found else "correlation of the low-frequency share with distance, all heads"
    prompts = [each.prompt for each in tested]
    scores = [float(each.by_distance[which].mean()) for each in tested]
    shuffled = [float(each.shuffled[which].mean()) for each in tested]
    measured = _measurement(name, scores, prompts, seed, left_out.total)
    control = _measurement("the same pairs of tokens with distances shuffled", shuffled, prompts, seed)
    less = [a - b for a, b in zip(scores, shuffled, strict=True)]
    apart = cluster_bootstrap(less, prompts, seed=seed)
    verdict: Verdict = "inconclusive"
    if len(readings) >= FEWEST_PROMPTS and measured.interval is not None and apart is not None:
        if heads.found and measured.interval.low > margin and apart.low > 0:
            verdict = "supported"
        elif not heads.found and float(heads.ends[1][heads.exists].max()) <= margin:
            verdict = "refuted"
    number, total = len(heads.found), int(heads.exists.sum())
    ends = "" if measured.interval is None else f" [{measured.interval.low:+.2f}, {measured.interval.high:+.2f}]"
    value = f"{measured.value:+.2f}{ends} (n = {len(tested)} prompts that did not choose them)"
    best = heads.order[0]
    claims = {
        "supported": f"In {number} of {total} heads the share of low-frequency pairs grows with distance: {value}, "
        f"{control.value:+.2f} with distances shuffled.",
        "refuted": f"In no head of {total} does the share of low-frequency pairs grow with distance by more than a "
        f"correlation of {margin:g}: the largest is {heads.score[best]:+.2f}, of head {best} (n = {len(readings)}); "
        f"all of them together have {measured.value:+.2f}{ends} (n = {len(tested)}, the test half).",
        "inconclusive": "Whether in any head the share of low-frequency pairs grows with distance cannot be told: "
        f"{f'the {number} found have' if number else f'no head of {total} was found; all have'} {value}.",
    }
    return Finding(
        **said,
        headline={
            "supported": f"{number} of {total} heads are positional (own definition)",
            "refuted": "No head is positional (own definition)",
            "inconclusive": "Which heads are positional cannot be told",
        }[verdict],
        claim=claims[verdict],
        verdict=verdict,
        measured=measured,
        control=control,
        comparison=Comparison(
            name="difference of the two, paired by prompt",
            difference=float(np.mean(less)),
            interval=apart,
            n=len(less),
        ),
        details=tuple(_details(heads, tested, which, prompts, len(readings), seed)),
        table=tuple(_rows(heads)),
        figures=tuple(rope_figures(readings, heads.exists, heads.found, nearest, seed)),
        suggests=tuple(_suggestions(heads, top)),
        notes=tuple(_notes(left_out, heads, trained, nearest, margin, len(readings))),
    )


def _measurement(
    name: str, values: Sequence[float], prompts: Sequence[str], seed: int, dropped: int = 0
) -> Measurement:
    interval: Interval | None = cluster_bootstrap(values, prompts, seed=seed)
    return Measurement(name=name, value=float(np.mean(values)), interval=interval, n=len(values), dropped=dropped)


def _details(
    heads: _Heads, tested: Sequence[RopeReading], which: NDArray[np.bool_], prompts: Sequence[str], n: int, seed: int
) -> Iterator[Measurement]:
    share = 100 * len(heads.found) / int(heads.exists.sum())
    yield Measurement(name="heads that are positional", value=share, unit="%", n=n)
    values = [float(each.by_logit[which].mean()) for each in tested]
    yield _measurement(
        "variant 2, of the same heads: low-frequency parts' correlation, less the others'", values, prompts, seed
    )
    if int(heads.exists.sum()) > 2:
        rank = stats.spearmanr(heads.score[heads.exists], heads.by_logit[heads.exists]).statistic
        if np.isfinite(rank):
            name = "rank correlation of the two variants over heads"
            yield Measurement(name=name, value=float(rank), n=int(heads.exists.sum()))
    for at in heads.order[:5]:
        ends = Interval(
            low=float(heads.ends[0][at]), high=float(heads.ends[1][at]), method="BCa bootstrap over prompts"
        )
        yield Measurement(name=f"variant 1 of head {at}", value=float(heads.score[at]), interval=ends, n=n)


def _rows(heads: _Heads) -> Iterator[tuple[JsonValue, ...]]:
    for at in sorted(heads.order, key=lambda at: at not in heads.found)[: max(_MOST_ROWS, len(heads.found))]:
        arrays = (heads.score, *heads.ends, heads.shuffled, heads.q, heads.by_logit, *heads.by_logit_ends)
        yield (*at, at in heads.found, *(float(f"{array[at]:.4g}") for array in arrays))


def _suggestions(heads: _Heads, top: float) -> Iterator[Suggestion]:
    chosen = heads.order[: max(1, round(top / 100 * heads.exists.size))]
    yield Suggestion(
        intervention="ablate_heads",
        fields={"heads": [list(at) for at in chosen], "form": "zero", "phase": "both"},
        reason=f"The {top:g} % of heads highest by variant 1, positional or not: if they serve distant tokens, "
        "removing them costs answers that stand far back, and removing others like them does not.",
    )


def _notes(left_out: LeftOut, heads: _Heads, trained: int, nearest: int, margin: float, n: int) -> Iterator[str]:
    yield from left_out.notes()
    yield (
        "Positional heads by this toolkit's own definition: the formula of Hong et al. 2024 is not verified, and their "
        "figures cannot be compared with these. Variant 1 was chosen before any ablation; variant 2 stands beside it. "
        "Barbero et al. 2025 (2410.06205) call heads positional that use high frequencies: not these."
    )
    yield (
        f"Low frequency: a wavelength above {trained:,} tokens, so that such a pair never turned full circle in "
        f"training. Counted: one key for each query and distance bin, {nearest} or more tokens back, none of the first "
        "four."
    )
    yield (
        f"Refuted means: with 95 % certainty no head's mean is above {margin:g}. A correlation says how a head's "
        "logits are made, not that it attends far: for that its attention by distance, and its removal, are the test."
    )
    missing = heads.exists.size - int(heads.exists.sum())
    if missing:
        yield f"{missing} heads never see a key {nearest} or more tokens back, or do not turn: not counted."
    if n < FEWEST_PROMPTS:
        yield f"Fewer than {FEWEST_PROMPTS} prompts: too few for a verdict."

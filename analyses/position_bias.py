"""Whether it matters where in the context the answer stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probe.analyses.figures.positions import Cell, listed, position_figures
from probe.analyses.measures.depth_indices import position_indices
from probe.analyses.measures.shuffled_depths import DRAWS, LOSS_DRAWS, DepthProfile, loss_p_value, shuffled_depths
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Verdict
from probe.intervals import by_cluster, clopper_pearson, cluster_bootstrap, p_text
from probe.selection import LeftOut, answered, depth, finite, length, reads_the_text, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

Floats = NDArray[np.float64]

QUESTION = "Does it matter where in the context the answer stands?"
SOURCE = (
    "Accuracy by position: Liu et al. 2023, Lost in the Middle, arXiv 2307.03172, sections 2-3; best-worst gap: Zhang "
    "et al. 2024, arXiv 2403.04797; U-index, primacy and recency: this toolkit's own"
)
LARGEST_P = 0.01
"""Largest p that supports: at 0.05 one null in twenty would, more than docs/nulls.md allows."""


@dataclass(frozen=True)
class _Case:
    """One prompt: where its needle stood, and how it went."""

    prompt: str
    unit: str
    length: int
    depth: float
    correct: bool
    loss: float | None
    attention: float | None
    """Mean share of attention that the heads gave the needle as the first answer token was produced."""
    strongest: float | None
    """The same of the head that gave it most."""


@analysis(question=QUESTION, source=SOURCE, needs={"span_mass": {}}, does_without_attention=True)
def position_bias(
    run: Run | Trace | Iterable[Trace],
    *,
    heads: Sequence[Sequence[int]] | None = None,
    margin: float = 10.0,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Measure how much the answer depends on the needle's depth: accuracy, answer loss and attention, by length.

    Test, claim, shape and gap are over the same prompts: those of all lengths with right and wrong answers, since
    elsewhere ceiling or floor hides an effect. Whether depth matters is tested by slope and bend of accuracy over
    depth, against depths shuffled among the prompts of each length; the larger of the two says which part is lost.
    Depths that are lost at one length and best at another cancel out, and what neither rises, falls nor sags is not
    seen. The gap between the best and the worst depth describes the effect: noise alone makes one, so beside it stands
    the gap that shuffled depths give. Supported: p < 0.01; refuted: it is not, and the gap's interval lies below
    `margin` points.

    Attention is `span_mass` of the needle in the row that produced the first answer token, mean over all heads or over
    `heads` ([[layer, head], …]).

    What it does not mean: it does not say why a depth is lost, and not that the attention is used. Refuted is about
    slope and bend: what neither rises, falls nor sags is not seen, and neither is what cancels out between lengths.
    """
    left_out = LeftOut()
    cases = list(_cases(selected(run, half=half), heads, left_out))
    parameters: dict[str, JsonValue] = {
        "heads": None if heads is None else [[int(index) for index in head] for head in heads],
        "margin": margin,
        "half": half,
        "seed": seed,
    }
    said: dict[str, Any] = {
        "analysis": "position_bias",
        "question": QUESTION,
        "definition": "Accuracy at the needle's best depth less that at its worst, in percentage points, over all "
        "lengths with right and wrong answers; against the same with depths shuffled among the prompts of each length.",
        "source": SOURCE,
        "parameters": parameters,
        "evidence": tuple(case.unit for case in cases),
    }
    cells = [_cell(group, seed) for group in _grouped(cases)]
    profile = shuffled_depths(
        np.array([case.correct for case in cases], bool),
        np.array([case.length for case in cases], np.int64),
        np.array([case.depth for case in cases], np.float64),
        seed=seed,
    )
    said |= {
        "columns": _COLUMNS,
        "table": tuple(_row(cell) for cell in cells),
        "figures": tuple(position_figures(cells, profile.lengths if profile else (), heads is not None)),
    }
    loss = tuple(_loss_note(cases, seed))
    if profile is None:
        return Finding(
            **said,
            headline="Whether it matters where the answer stands cannot be told",
            claim=_unmeasured(cases),
            verdict="inconclusive",
            measured=Measurement(name=_GAP, value=None, unit="points", n=len(cases), dropped=left_out.total),
            notes=(*left_out.notes(), "No length has both right and wrong answers at two depths or more.", *loss),
        )
    return _finding(said, cells, profile, left_out, margin, loss)


_GAP = "accuracy at the best depth less that at the worst"
_COLUMNS = (
    "length_tokens",
    "needle_depth",
    "num_prompts",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "answer_loss_nats",
    "answer_loss_low",
    "answer_loss_high",
    "attention_to_needle",
    "attention_low",
    "attention_high",
    "attention_of_strongest_head",
)


def _cases(traces: list[Trace], heads: Sequence[Sequence[int]] | None, left_out: LeftOut) -> Iterator[_Case]:
    for trace, outcome in answered(traces, left_out):
        where = depth(trace)
        if where is None:
            left_out.add("the sample does not say at which depth its needle stands")
            continue
        loss = outcome.answer_loss
        attention = _attention(trace, heads)
        yield _Case(
            prompt=trace.sample.name,
            unit=trace.unit,
            length=length(trace),
            depth=where,
            correct=bool(outcome.correct),
            loss=loss if finite(loss) else None,
            attention=None if attention is None else attention[0],
            strongest=None if attention is None else attention[1],
        )


def _attention(trace: Trace, heads: Sequence[Sequence[int]] | None) -> tuple[float, float] | None:
    """Return the attention that all heads, or some, give the needle in row 0: their mean and the largest."""
    if "span_mass" not in trace or not reads_the_text(trace):
        return None
    array = trace["span_mass"]
    if "needle" not in array["span"].to_numpy().tolist() or array.sizes["row"] == 0:
        return None
    mass = array.sel(span="needle").isel(row=0).transpose("layer", "head").to_numpy().astype(np.float64)
    if heads is not None:
        outside = [tuple(at) for at in heads if not (0 <= at[0] < mass.shape[0] and 0 <= at[1] < mass.shape[1])]
        if outside:
            raise UsageError(f"heads {outside}: the model has {mass.shape[0]} layers of {mass.shape[1]} heads")
        mass = np.array([mass[at[0], at[1]] for at in heads])
    if mass.size == 0 or not np.isfinite(mass).all():
        return None
    return float(mass.mean()), float(mass.max())


def _grouped(cases: list[_Case]) -> list[list[_Case]]:
    places = sorted({(case.length, case.depth) for case in cases})
    return [[case for case in cases if (case.length, case.depth) == place] for place in places]


def _cell(cases: list[_Case], seed: int) -> Cell:
    def mean(values: list[tuple[str, float | None]]) -> tuple[float, float, float]:
        known = [(prompt, value) for prompt, value in values if value is not None]
        if not known:
            return (float("nan"),) * 3
        prompts, numbers = [p for p, _ in known], [v for _, v in known]
        interval = cluster_bootstrap(numbers, prompts, seed=seed)
        ends = (float("nan"),) * 2 if interval is None else (interval.low, interval.high)
        return float(by_cluster(numbers, prompts).mean()), *ends

    right = sum(case.correct for case in cases)
    exact = clopper_pearson(right, len(cases))
    assert exact is not None
    return Cell(
        length=cases[0].length,
        depth=cases[0].depth,
        num_prompts=len(cases),
        num_right=right,
        accuracy=(right / len(cases), exact.low, exact.high),
        loss=mean([(case.prompt, case.loss) for case in cases]),
        attention=mean([(case.prompt, case.attention) for case in cases]),
        strongest=mean([(case.prompt, case.strongest) for case in cases])[0],
    )


def _row(cell: Cell) -> tuple[JsonValue, ...]:
    numbers = (*cell.accuracy, *cell.loss, *cell.attention, cell.strongest)
    shown = [float(f"{number:.4g}") if np.isfinite(number) else None for number in numbers]
    return (cell.length, cell.depth, cell.num_prompts, *shown)


def _loss_note(cases: list[_Case], seed: int) -> Iterator[str]:
    known = [case for case in cases if case.loss is not None]
    if known:
        p = loss_p_value(
            np.array([case.loss for case in known], np.float64),
            np.array([case.length for case in known], np.int64),
            np.array([case.depth for case in known], np.float64),
            seed=seed,
        )
        if p is not None:
            yield (
                "The right answer's loss over depth (spread of its ranks, all lengths, shuffled likewise): "
                f"{p_text(p, LOSS_DRAWS)}, {_prompts(len(known))}. It shows effects where all is right, or all wrong, "
                "and decides nothing here."
            )


def _prompts(n: int) -> str:
    return f"n = {n} prompt{'' if n == 1 else 's'}"


def _unmeasured(cases: list[_Case]) -> str:
    if not cases:
        return "No prompt was answered, so nothing can be said of the depth."
    if len({case.depth for case in cases}) == 1:
        said = "Every needle stands at the same depth, so it cannot be told whether depth matters"
        return f"{said} ({_prompts(len(cases))})."
    by_length = {at: [case for case in cases if case.length == at] for at in sorted({case.length for case in cases})}
    several = {
        at: np.mean([c.correct for c in here]) for at, here in by_length.items() if len({c.depth for c in here}) > 1
    }
    solved, lost = [at for at in several if several[at] == 1], [at for at in several if several[at] == 0]
    parts = [
        f"every answer is right at {listed(solved)} tokens" if solved else "",
        f"every answer is wrong at {listed(lost)} tokens" if lost else "",
    ]
    reason = " and ".join(part for part in parts if part) or "at each length all needles stand at one depth"
    return f"Whether it matters where the answer stands cannot be told: {reason} ({_prompts(len(cases))})."


def _finding(
    said: dict[str, Any],
    cells: list[Cell],
    profile: DepthProfile,
    left_out: LeftOut,
    margin: float,
    loss: tuple[str, ...],
) -> Finding:
    where = listed(profile.lengths)
    n, ends, p = profile.n, profile.gap_interval, profile.p_value
    verdict: Verdict = "supported" if p < LARGEST_P else "refuted" if ends.high <= margin else "inconclusive"
    value, null = position_indices(profile.accuracy), position_indices(profile.shuffled)
    low, high = np.quantile(null["gap"], [0.025, 0.975])
    control = Measurement(
        name="the same with depths shuffled among the prompts of each length",
        value=float(null["gap"].mean()),
        unit="points",
        interval=Interval(low=float(low), high=float(high), method=f"{DRAWS:,} permutations"),
        n=n,
    )
    details = [
        Measurement(name=f"{name} at {where} tokens", value=float(value[key]), unit="points", n=n)
        for key, name in _INDICES.items()
        if len(profile.depths) > 2
    ]
    for at in sorted({cell.length for cell in cells}):
        here = [cell for cell in cells if cell.length == at]
        if len(here) > 1:
            gap = 100 * float(np.ptp([cell.accuracy[0] for cell in here]))
            num = sum(cell.num_prompts for cell in here)
            details.append(Measurement(name=f"gap at {at:,} tokens", value=gap, unit="points", n=num))
    notes = [
        *left_out.notes(),
        f"Test, claim and gap are over the same {_prompts(n).removeprefix('n = ')}, at {where} tokens: the lengths "
        "that have right and wrong answers. Each prompt is taken less the mean of its length; depths that are lost at "
        "one length and best at another cancel out.",
        "A gap between noisy depths is never 0, so the test against shuffled depths decides: it adds the squares of "
        "the slope and the bend of accuracy over depth. The gap's interval is for all depths at once, and wide.",
        f"Refuted means: no more than shuffled depths give, and below {margin:g} points with 95 % certainty.",
        *loss,
    ]
    if len(profile.depths) > 2:
        # One-sided: an effect is a U larger than shuffled depths give.
        u_value = float((1 + (null["U"] >= value["U"] - 1e-9).sum()) / (1 + DRAWS))
        notes.append(f"U-index {value['U']:.1f} points (this toolkit's own), {p_text(u_value, DRAWS)} if shuffled.")
    return Finding(
        **said,
        headline=_headline(profile, verdict),
        claim=_claim(profile, control, verdict, margin),
        verdict=verdict,
        measured=Measurement(
            name=f"{_GAP}, at {where} tokens",
            value=profile.gap,
            unit="points",
            interval=ends,
            n=n,
            dropped=left_out.total,
        ),
        control=control,
        comparison=Comparison(
            name="slope and bend of accuracy over depth, against depths shuffled within each length",
            p_value=p,
            p_is_bound=p <= 1.001 / (1 + DRAWS),
            n=n,
        ),
        details=tuple(details),
        notes=tuple(notes),
    )


_INDICES = {
    "U": "U-index (this toolkit's own)",
    "primacy": "primacy: first depth over the worst inner one (this toolkit's own)",
    "recency": "recency: last depth over the worst inner one (this toolkit's own)",
}


def _headline(profile: DepthProfile, verdict: Verdict) -> str:
    if verdict == "supported":
        shape = profile.shape or "where the answer stands matters"
        return f"{shape[0].upper()}{shape[1:]} at {listed(profile.lengths)} tokens"
    if verdict == "refuted":
        return "Where the answer stands makes no difference"
    return "Whether it matters where the answer stands cannot be told"


def _claim(profile: DepthProfile, control: Measurement, verdict: Verdict, margin: float) -> str:
    several = len(profile.lengths) > 1
    over = f"{'Over the lengths' if several else 'At'} {listed(profile.lengths)}{'' if several else ' tokens'}"
    null = control.interval
    chance = (
        "" if null is None else f", where shuffled depths give {control.value:.0f} [{null.low:.0f}, {null.high:.0f}]"
    )
    tail = f"(gap {profile.gap:.0f} points{chance}; {p_text(profile.p_value, DRAWS)}, {_prompts(profile.n)})"
    if verdict == "refuted":
        return f"{over}, where the answer stands makes no difference of more than {margin:g} points {tail}."
    if verdict == "inconclusive":
        return f"{over}, where the answer stands makes no difference that can be told from chance {tail}."
    best, worst = int(profile.accuracy.argmax()), int(profile.accuracy.argmin())

    def said(at: int) -> str:
        return f"{profile.right[at]} of {profile.asked[at]}"

    shape = f": {profile.shape}" if profile.shape else ""
    return (
        f"{over} it matters where the answer stands{shape}; {said(worst)} are right with the needle at depth "
        f"{profile.depths[worst]:g}, {said(best)} at depth {profile.depths[best]:g} {tail}."
    )

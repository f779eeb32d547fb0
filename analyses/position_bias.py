"""Whether it matters where in the context the answer stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probe.analyses.depth_indices import index_interval, position_indices
from probe.analyses.position_figures import Cell, position_figures
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Verdict
from probe.intervals import by_cluster, clopper_pearson, cluster_bootstrap
from probe.selection import LeftOut, answered, depth, finite, length, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

Floats = NDArray[np.float64]

QUESTION = "Does it matter where in the context the answer stands?"
SOURCE = (
    "Accuracy by position: Liu et al. 2023, Lost in the Middle, arXiv 2307.03172, sections 2-3; best-worst gap: Zhang "
    "et al. 2024, arXiv 2403.04797; U-index, primacy and recency: this toolkit's own"
)
_DRAWS = 4_999


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


@analysis(question=QUESTION, source=SOURCE, needs={"span_mass": {}})
def position_bias(
    run: Run | Trace | Iterable[Trace],
    *,
    heads: Sequence[Sequence[int]] | None = None,
    margin: float = 10.0,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Measure how much the answer depends on the needle's depth: accuracy, answer loss and attention, by length.

    The headline is the gap between the best and the worst depth, in percentage points, at the length whose accuracy
    over all depths is closest to one half (of those where it is neither 0 nor 100 %; the shorter on a tie): there
    neither ceiling nor floor hides an effect. A gap of noisy cells is never below 0, so beside it stands the gap that
    shuffled depths give; and whether depth matters is tested by the spread of accuracy over depths, against depths
    shuffled within each length. U-index, primacy and recency are details. Supported: p < 0.05; refuted: it is not, and
    the gap's interval lies below `margin` points.

    Attention is `span_mass` of the needle in the row that produced the first answer token, mean over all heads or over
    `heads` ([[layer, head], …]). It does not say why a depth is lost, and not that the attention is used.
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
        "definition": "Accuracy at the needle's best depth less that at its worst, in percentage points, at the length "
        "whose accuracy over all depths is closest to one half; against the same with depths shuffled among prompts.",
        "source": SOURCE,
        "parameters": parameters,
        "evidence": tuple(case.unit for case in cases),
    }
    cells = [_cell(group, seed) for group in _grouped(cases)]
    lengths = sorted({cell.length for cell in cells})
    chosen = _chosen(cases, lengths)
    figures = tuple(position_figures(cells, chosen, heads is not None))
    table = tuple(_row(cell) for cell in cells)
    if chosen is None:
        return Finding(
            **said,
            claim=_unmeasured(cases, lengths),
            verdict="inconclusive",
            measured=Measurement(name=_GAP, value=None, unit="points", n=len(cases), dropped=left_out.total),
            columns=_COLUMNS,
            table=table,
            figures=figures,
            notes=(*left_out.notes(), "Every answer at every length is right, or wrong, or there are no two depths."),
        )
    return _finding(said, cases, cells, chosen, left_out, margin, seed, table, figures)


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
    if "span_mass" not in trace:
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


def _profile(cases: list[_Case], at: int) -> tuple[NDArray[np.bool_], NDArray[np.int64], list[float]]:
    """Return, for one length, whether each prompt was answered right, and the index of its depth."""
    here = [case for case in cases if case.length == at]
    depths = sorted({case.depth for case in here})
    right = np.array([case.correct for case in here], bool)
    return right, np.array([depths.index(case.depth) for case in here], np.int64), depths


def _chosen(cases: list[_Case], lengths: list[int]) -> int | None:
    """Return the length that tells most: its accuracy is closest to one half, and it has two depths at least."""
    rates = {}
    for at in lengths:
        right, _, depths = _profile(cases, at)
        if len(depths) > 1 and 0 < right.mean() < 1:
            rates[at] = abs(float(right.mean()) - 0.5)
    return min(rates, key=lambda at: (rates[at], at)) if rates else None


def _unmeasured(cases: list[_Case], lengths: list[int]) -> str:
    if not cases:
        return "No prompt was answered, so nothing can be said of the depth."
    rates = {at: np.mean([case.correct for case in cases if case.length == at]) for at in lengths}
    solved, lost = [at for at in lengths if rates[at] == 1], [at for at in lengths if rates[at] == 0]
    parts = [
        f"every answer is right at {_listed(solved)} tokens" if solved else "",
        f"every answer is wrong at {_listed(lost)} tokens" if lost else "",
    ]
    said = " and ".join(part for part in parts if part) or "no length has two depths"
    return f"Where the answer stands makes no difference that could be seen: {said} (n = {len(cases)} prompts)."


def _listed(lengths: list[int]) -> str:
    texts = [f"{at:,}" for at in lengths]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _by_depth(right: NDArray[np.bool_], where: NDArray[np.int64], num_depths: int) -> Floats:
    counts = np.bincount(where, minlength=num_depths)
    return np.asarray(100 * np.bincount(where, weights=right, minlength=num_depths) / counts, np.float64)


def _depth_effect(cases: list[_Case], seed: int) -> tuple[float, int]:
    """Return the permutation p-value that depth matters, over all lengths that tell anything, and the prompts in it.

    The statistic is the spread of accuracy over depths, each prompt taken less the mean of its length; depths are
    shuffled within each length.
    """
    generator = np.random.default_rng([seed, 2])
    depths = sorted({case.depth for case in cases})
    profiles = [_profile(cases, at) for at in sorted({case.length for case in cases})]
    told = [(right, where, there) for right, where, there in profiles if 0 < right.mean() < 1 and len(there) > 1]
    residual = np.concatenate([right - right.mean() for right, _, _ in told])
    index = [np.array([depths.index(there[i]) for i in where]) for _, where, there in told]
    counts = np.maximum(np.bincount(np.concatenate(index), minlength=len(depths)), 1)

    def spread(places: list[NDArray[np.int64]]) -> float:
        sums = np.bincount(np.concatenate(places), weights=residual, minlength=len(depths))
        return float((sums**2 / counts).sum())

    observed = spread(index)
    drawn = (spread([generator.permutation(places) for places in index]) for _ in range(_DRAWS))
    return (1 + sum(value >= observed - 1e-9 for value in drawn)) / (1 + _DRAWS), len(residual)


def _shuffled(right: NDArray[np.bool_], where: NDArray[np.int64], num_depths: int, seed: int) -> Floats:
    """Return profiles of prompts whose depths were shuffled among them, `[draw depth]`."""
    generator = np.random.default_rng([seed, 1])
    return np.array([_by_depth(right, generator.permutation(where), num_depths) for _ in range(_DRAWS)])


def _finding(
    said: dict[str, Any],
    cases: list[_Case],
    cells: list[Cell],
    chosen: int,
    left_out: LeftOut,
    margin: float,
    seed: int,
    table: tuple[tuple[JsonValue, ...], ...],
    figures: tuple[Any, ...],
) -> Finding:
    right, where, depths = _profile(cases, chosen)
    profile = _by_depth(right, where, len(depths))
    value = position_indices(profile)
    null = position_indices(_shuffled(right, where, len(depths), seed))
    n = len(right)

    def interval(name: str) -> Interval:
        return index_interval(name, right, where, len(depths))

    def p_value(name: str) -> float:
        # One-sided: an effect is a gap, or a U, larger than shuffled depths give.
        return float((1 + (null[name] >= value[name] - 1e-9).sum()) / (1 + _DRAWS))

    ends = interval("gap")
    p, num_tested = _depth_effect(cases, seed)
    verdict: Verdict = "supported" if p < 0.05 else "refuted" if ends.high <= margin else "inconclusive"
    low, high = np.quantile(null["gap"], [0.025, 0.975])
    details = [
        Measurement(
            name=f"{names} at {chosen:,} tokens", value=float(value[key]), unit="points", interval=interval(key), n=n
        )
        for key, names in _INDICES.items()
        if len(depths) > 2
    ]
    for at in sorted({cell.length for cell in cells} - {chosen}):
        other, there, their = _profile(cases, at)
        if len(their) > 1:
            gap = position_indices(_by_depth(other, there, len(their)))["gap"]
            details.append(Measurement(name=f"gap at {at:,} tokens", value=float(gap), unit="points", n=len(other)))
    notes = [
        *left_out.notes(),
        f"The headline is for {chosen:,} tokens, where the accuracy over all depths, {100 * right.mean():.0f} %, is "
        "closest to one half.",
        "A gap of noisy depths is never below 0, and its interval is for the depths that came out best and worst: the "
        "test against shuffled depths decides. It takes each prompt less the mean of its length, at lengths with right "
        "and wrong answers.",
        f"Refuted means: no more than shuffled depths give, and below {margin:g} points with 95 % certainty.",
    ]
    if len(depths) > 2:
        notes.append(
            f"U-index {value['U']:.1f} points (this toolkit's own), p = {p_value('U'):.2g} against shuffled depths."
        )
    return Finding(
        **said,
        headline=_headline(chosen, cells, verdict),
        claim=_claim(chosen, cells, value, ends, p, verdict, n),
        verdict=verdict,
        measured=Measurement(
            name=f"{_GAP}, at {chosen:,} tokens",
            value=float(value["gap"]),
            unit="points",
            interval=ends,
            n=n,
            dropped=left_out.total,
        ),
        control=Measurement(
            name="the same with depths shuffled among prompts",
            value=float(null["gap"].mean()),
            unit="points",
            interval=Interval(low=float(low), high=float(high), method=f"{_DRAWS:,} permutations"),
            n=n,
        ),
        comparison=Comparison(
            name="accuracy over depths against shuffled depths, at all lengths with right and wrong answers",
            difference=float(value["gap"] - null["gap"].mean()),
            p_value=p,
            n=num_tested,
        ),
        details=tuple(details),
        columns=_COLUMNS,
        table=table,
        figures=figures,
        notes=tuple(notes),
    )


_INDICES = {
    "U": "U-index (this toolkit's own)",
    "primacy": "primacy: first depth over the worst inner one (this toolkit's own)",
    "recency": "recency: last depth over the worst inner one (this toolkit's own)",
}


def _headline(chosen: int, cells: list[Cell], verdict: Verdict) -> str:
    if verdict == "supported":
        shape = _shape([cell for cell in cells if cell.length == chosen])
        return f"{shape[0].upper()}{shape[1:]} at {chosen:,} tokens"
    if verdict == "refuted":
        return "Where the answer stands makes no difference"
    return "Whether it matters where the answer stands cannot be told"


def _claim(
    chosen: int, cells: list[Cell], value: dict[str, Floats], ends: Interval, p: float, verdict: Verdict, n: int
) -> str:
    here = [cell for cell in cells if cell.length == chosen]
    best, worst = max(here, key=lambda c: c.accuracy[0]), min(here, key=lambda c: c.accuracy[0])
    tail = f"(gap {float(value['gap']):.0f} points [{ends.low:.0f}, {ends.high:.0f}], p = {p:.2g}, n = {n} prompts)"
    if verdict != "supported":
        seen = "makes no difference" if verdict == "refuted" else "makes no difference that can be told from chance"
        return f"At {chosen:,} tokens, where the answer stands {seen} {tail}."

    def said(cell: Cell) -> str:
        return f"{100 * cell.accuracy[0]:.0f} % right with the needle at depth {cell.depth:g}"

    return (
        f"At {chosen:,} tokens it matters where the answer stands: {_shape(here)}; {said(best)}, {said(worst)} {tail}."
    )


def _shape(cells: list[Cell]) -> str:
    """Return which part of the context is lost, from the profile's ends against its middle."""
    rates = [cell.accuracy[0] for cell in cells]
    first, last, inner = rates[0], rates[-1], min(rates[1:-1], default=float("nan"))
    if first > inner and last > inner:
        return "the middle is lost"
    if first < last:
        return "the beginning is lost"
    return "the end is lost" if last < first else "some depths are lost"

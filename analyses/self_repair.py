"""Whether heads behind the removed ones make up for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from scipy import stats

from probe.analyses.figures.repair import repair_figures
from probe.analyses.measures.ablation_effect import difference
from probe.analyses.measures.ablation_reading import AblationReading, controls_of
from probe.analyses.measures.repair_reading import WRITES, RepairReading, read_repair
from probe.analysis import Needs, analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Suggestion, Verdict
from probe.intervals import FEWEST_PROMPTS, cluster_bootstrap, p_text, percentiles, resamples, sign_flip
from probe.selection import LeftOut, holding, intervention_text, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

Floats = NDArray[np.float64]

QUESTION = "When these heads are removed, do the heads behind them write more for the answer?"
SOURCE = (
    "Self-repair: McGrath et al. 2023 (The Hydra Effect, arXiv 2307.15771) and Rushing and Nanda 2024 (arXiv "
    "2402.15390); the measure, its control and its test are this toolkit's own"
)
NEEDS: Final[Needs] = {"span_logit": {}}
_MEASURED = "written for the answer by the heads behind, more than with nothing removed"
_COLUMNS = (
    "layer", "head", "writes_before", "writes_after", "change", "change_low", "change_high",
    "change_with_others_removed", "q_value", "makes_up",
)  # fmt: skip


@dataclass(frozen=True)
class _Head:
    """What one head behind the removed ones does."""

    head: tuple[int, int]
    before: float
    after: float
    interval: Interval | None
    others: float
    q: float
    repairs: bool


@analysis(question=QUESTION, source=SOURCE, needs=NEEDS)
def self_repair(
    run: Run | Trace | Iterable[Trace],
    *,
    treatment: str | None = None,
    margin: float = 0.1,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Compare what the heads behind the removed ones write into the answer's logit, with them removed and with nothing.

    Summed over all heads in layers behind the first removed one: the direct path of `span_logit`, at the prompt's last
    token, where the text is the same in all conditions. The norms' scale is that of the untouched model, told from
    heads that the removal cannot have reached: a smaller residual stream makes every head's part larger, which Rushing
    and Nanda name as a mechanism of its own, and which is given on its own. Paired by prompt against as many other
    heads removed (random draws). Supported: the removed heads wrote for the answer, the interval lies above 0, so does
    that of the difference from the control (over prompts and draws), p < 0.05, and one more draw would not give as
    much (99 % prediction interval). Refuted: with 95 % certainty it makes up for less than `margin` of what the removed
    heads wrote.

    What it does not mean: that more is written does not say that it is enough (see `head_ablation`). It is about heads
    alone, and about the direct path: an MLP behind them may make up for them too, and a head behind may do so through
    another, so that refuted does not mean that nothing does.
    """
    if not 0 < margin < 1:
        raise UsageError(f"self_repair: margin is a share of what the removed heads wrote, not {margin}")
    left_out = LeftOut()
    traces = selected(run, role="treatment", half=half)
    seen = sorted({trace.condition for trace in traces if WRITES in trace})
    names = sorted({trace.condition for trace in traces})
    if treatment is not None and names and treatment not in names:
        raise UsageError(f"no treatment {treatment!r}; there are {names}")
    chosen = treatment or (seen[0] if seen else names[0] if names else None)
    reading, how, others = None, "", []
    if chosen is not None:
        treated = holding([trace for trace in traces if trace.condition == chosen], WRITES, left_out)
        every = selected(run, role="control", half=half)
        own, foreign = controls_of(chosen, [(trace, trace.outcome) for trace in every if WRITES in trace])  # type: ignore[misc]
        untouched = selected(run, role="baseline", half=half)
        # Another stage may have read the same prompts without what heads write: only where none has it, it is missing.
        untouched = [trace for trace in untouched if WRITES in trace] or holding(untouched, WRITES, left_out)
        reading = read_repair(treated, [trace for trace, _ in own], untouched, left_out)
        how = intervention_text(treated[0].facts) if treated else ""
        others = [*(name for name in seen if name != chosen), *foreign]
    parameters: dict[str, JsonValue] = {"treatment": treatment, "margin": margin, "half": half, "seed": seed}
    said: dict[str, Any] = {
        "analysis": "self_repair",
        "question": QUESTION,
        "definition": "What all heads behind the first removed one write into the answer's logit over a distractor's "
        "at the prompt's last token, with heads removed, at the norms' scale of the untouched model, less with nothing "
        "removed.",
        "source": SOURCE,
        "parameters": parameters,
        "evidence": () if reading is None else reading.units,
    }
    if reading is None:
        return Finding(
            **said,
            headline="Whether the removed heads are made up for cannot be told",
            claim="No prompt was read with what its heads write on record, both with heads removed and with none.",
            verdict="inconclusive",
            measured=Measurement(name=_MEASURED, value=None, unit="logits", n=0, dropped=left_out.total),
            notes=(
                *left_out.notes(),
                "It needs `span_logit` of a baseline and of a treatment: conditions with `capture: true`.",
            ),
        )
    if not reading.behind:
        return _nothing_behind(said, reading, left_out, seed)
    return _finding(said, reading, left_out, margin, seed, how, others)


def _nothing_behind(said: dict[str, Any], reading: RepairReading, left_out: LeftOut, seed: int) -> Finding:
    last = min(layer for layer, _ in reading.removed)
    return Finding(
        **said,
        headline="No head stands behind the removed ones",
        claim=f"No head stands behind the removed ones, which begin with layer {last}: none can make up for them"
        f"{_by_norm(reading, seed)}.",
        verdict="inconclusive",
        measured=Measurement(name=_MEASURED, value=None, unit="logits", n=len(reading.prompts), dropped=left_out.total),
        details=tuple(_details(reading, seed)),
        notes=left_out.notes(),
    )


def _finding(
    said: dict[str, Any],
    reading: RepairReading,
    left_out: LeftOut,
    margin: float,
    seed: int,
    how: str,
    others: list[str],
) -> Finding:
    n, repair = len(reading.prompts), reading.repair
    value, ends = float(repair.mean()), _ends(repair, reading, seed)
    wrote, wrote_ends = float(reading.wrote.mean()), _ends(reading.wrote, reading, seed)
    less, interval, p, control = _against_others(reading, seed)
    verdict: Verdict = "inconclusive"
    if n >= FEWEST_PROMPTS and ends is not None:
        short = _ends(repair - margin * reading.wrote, reading, seed)
        above = interval is not None and interval.low > 0 and p is not None and p < 0.05
        lost = wrote_ends is not None and wrote_ends.low > 0
        if lost and ends.low > 0 and above and value > _reach(reading.others_repair):
            verdict = "supported"
        elif lost and short is not None and short.high < 0:
            verdict = "refuted"
    heads = _heads(reading, seed)
    named = [each.head for each in heads if each.repairs] if verdict == "supported" else []
    share = value / wrote if wrote_ends is not None and wrote_ends.low > 0 else None
    start = {
        "supported": "The heads behind make up for the removed ones",
        "refuted": "The heads behind do not make up for the removed ones",
        "inconclusive": "Whether the heads behind make up for the removed ones cannot be told",
    }[verdict]
    if verdict == "supported" and share is not None:
        start += " in part" if share < 0.9 else ""
    numbers = f"they write {value:+.2f}{_in(ends)} logits more for the answer than with nothing removed"
    if control is not None:
        numbers += f", with as many others removed {control:+.2f} ({len(reading.draws)} draws; {_p(p)})"
    of = f"; the removed ones wrote {wrote:.2f}{_in(wrote_ends)}"
    return Finding(
        **said,
        headline=start if share is None or verdict != "supported" else f"{start}: {share:.0%} of what they wrote",
        claim=f"{start}: {numbers}{of} (n = {n} prompt{'s' if n > 1 else ''}){_by_norm(reading, seed)}.",
        verdict=verdict,
        measured=Measurement(name=_MEASURED, value=value, unit="logits", interval=ends, n=n, dropped=left_out.total),
        control=None
        if control is None
        else Measurement(
            name=f"the same with as many others removed ({len(reading.draws)} draws)",
            value=control,
            unit="logits",
            n=n,
        ),
        comparison=Comparison(
            name="found heads removed less others removed, in logits; sign-flip permutation test, paired by prompt",
            difference=less,
            interval=interval,
            p_value=p,
            p_is_bound=p is not None and p <= 1e-4,
            n=n,
        ),
        details=tuple(_details(reading, seed)),
        columns=_COLUMNS,
        table=tuple(_row(each) for each in heads),
        figures=tuple(repair_figures(reading, start, named)),
        suggests=tuple(_suggested(reading, named)),
        notes=(*left_out.notes(), *_notes(reading, margin, how, others)),
    )


def _ends(values: Floats, reading: RepairReading, seed: int) -> Interval | None:
    return cluster_bootstrap(values, reading.prompts, seed=seed)


def _against_others(
    reading: RepairReading, seed: int
) -> tuple[float | None, Interval | None, float | None, float | None]:
    """Return the difference from other heads removed, its interval and p, and what is gained without the others."""
    over = reading.over_others
    if not over.size or not np.isfinite(over).any():
        return None, None, None, None
    zero = {"repair": np.zeros(len(over))}
    paired = AblationReading((), (), zero, {"repair": -over}, None, (), "", None)
    value, interval, each = difference(paired, "repair", seed)
    per_draw = reading.others_repair
    return value, interval, sign_flip(each, seed=seed), float(np.nanmean(np.nanmean(per_draw, axis=0)))


def _by_norm(reading: RepairReading, seed: int) -> str:
    value, ends = float(reading.by_norm.mean()), _ends(reading.by_norm, reading, seed)
    more = f"writes {value:+.2f}{_in(ends)} logits more" if value >= 0 else f"writes {value:+.2f}{_in(ends)} logits"
    return f"; by the norms' scale alone, {reading.norm.mean():.2f} times what it was, what is left {more}"


def _reach(per_prompt: Floats, number: int = 1) -> float:
    """Return what one more draw would give at most, with 99.5 % certainty for all of `number` heads together.

    Infinity where fewer than 3 were drawn.
    """
    draws = np.nanmean(per_prompt, axis=0) if per_prompt.size else np.empty(0)
    draws = draws[np.isfinite(draws)]
    if len(draws) < 3:
        return float("inf")
    width = float(stats.t.ppf(1 - 0.005 / number, len(draws) - 1)) * draws.std(ddof=1) * np.sqrt(1 + 1 / len(draws))
    return float(draws.mean() + width)


def _heads(reading: RepairReading, seed: int) -> list[_Head]:
    """Return every head behind, those that gain most first.

    One makes up for the removed ones where it gains more than with others removed (q < 0.05 over heads), more than one
    more draw would give any of them, and its interval lies above 0.
    """
    found, p_values = [], []
    for i, head in enumerate(reading.behind):
        change = reading.after[:, i] - reading.before[:, i]
        there = np.isfinite(reading.others[:, i]).any(axis=0)
        drawn = reading.others[:, i][:, there] - reading.before[:, i, None]
        known = np.isfinite(drawn).any(axis=1)
        over = change[known] - np.nanmean(drawn[known], axis=1) if known.any() else np.empty(0)
        p = sign_flip(over, seed=seed)
        p_values.append(1.0 if p is None else p)
        ends = _ends(change, reading, seed)
        beyond = ends is not None and ends.low > 0 and float(change.mean()) > _reach(drawn, len(reading.behind))
        others = float(np.nanmean(np.nanmean(drawn[known], axis=1))) if known.any() else float("nan")
        before, after = float(reading.before[:, i].mean()), float(reading.after[:, i].mean())
        found.append(_Head(head, before, after, ends, others, 1.0, beyond))
    adjusted = stats.false_discovery_control(p_values)
    told = [
        _Head(h.head, h.before, h.after, h.interval, h.others, float(q), h.repairs and q < 0.05)
        for h, q in zip(found, adjusted, strict=True)
    ]
    return sorted(told, key=lambda each: (each.before - each.after, each.head))


def _row(each: _Head) -> tuple[JsonValue, ...]:
    ends = (None, None) if each.interval is None else (each.interval.low, each.interval.high)
    numbers = (each.before, each.after, each.after - each.before, *ends, each.others, each.q)
    shown = [None if v is None or not np.isfinite(v) else float(f"{v:.4g}") for v in numbers]
    return (*each.head, *shown, each.repairs)


def _details(reading: RepairReading, seed: int) -> Iterator[Measurement]:
    n = len(reading.prompts)
    wrote, ends = float(reading.wrote.mean()), _ends(reading.wrote, reading, seed)
    yield Measurement(
        name="written for the answer by the removed heads, with nothing removed",
        value=wrote,
        unit="logits",
        interval=ends,
        n=n,
    )
    lost = ends is not None and ends.low > 0
    if reading.behind and lost:
        yield _share("share of it that the heads behind make up for", reading.repair, reading, seed)
    yield Measurement(
        name="factor by which the norms' scale grew",
        value=float(reading.norm.mean()),
        interval=_ends(reading.norm, reading, seed),
        n=n,
    )
    if np.isfinite(reading.norm_of_others).any():
        known = np.isfinite(reading.norm_of_others).any(axis=1)
        each = np.nanmean(reading.norm_of_others[known], axis=1)
        prompts = [reading.prompts[int(i)] for i in np.flatnonzero(known)]
        yield Measurement(
            name="factor by which the norms' scale grew with others removed",
            value=float(each.mean()),
            interval=cluster_bootstrap(each, prompts, seed=seed),
            n=len(prompts),
        )
    yield Measurement(
        name="more that the heads left write by the norms' scale alone",
        value=float(reading.by_norm.mean()),
        unit="logits",
        interval=_ends(reading.by_norm, reading, seed),
        n=n,
    )
    if lost:
        yield _share("share of it that the norms' scale makes up for", reading.by_norm, reading, seed)


def _share(name: str, gained: Floats, reading: RepairReading, seed: int) -> Measurement:
    """Return what was gained over what the removed heads wrote: a ratio of means, resampled by prompt."""
    n, interval = len(reading.prompts), None
    if n > 1:
        weights = resamples(n, seed=seed)
        low, high = percentiles((weights @ gained) / (weights @ reading.wrote))
        interval = Interval(low=float(low), high=float(high), method="bootstrap over prompts")
    return Measurement(name=name, value=float(gained.mean() / reading.wrote.mean()), interval=interval, n=n)


def _suggested(reading: RepairReading, named: list[tuple[int, int]]) -> Iterator[Suggestion]:
    if named:
        yield Suggestion(
            intervention="ablate_heads",
            fields={"heads": [list(head) for head in (*reading.removed, *named)], "form": "zero", "phase": "both"},
            reason="If these heads make up for the removed ones, removing both costs more than either.",
        )


def _notes(reading: RepairReading, margin: float, how: str, others: list[str]) -> Iterator[str]:
    yield (
        f"Refuted means: with 95 % certainty less than {margin:.0%} of what the removed heads wrote is made up for. "
        "Heads alone were looked at, and their direct path: MLPs may make up for removed heads too."
    )
    if how:
        yield f"Intervention: {how}."
    if "form mean" in how or "phase prefill" in how:
        yield "What the removed heads still write is not in these numbers: they are of heads that write nothing."
    if len(reading.draws) < 3:
        yield "Fewer than 3 draws of others: what another draw would do is not known, so that nothing can be supported."
    if others:
        yield f"Other treatments and controls in these traces, not looked at here: {', '.join(others)}."


def _in(interval: Interval | None) -> str:
    return "" if interval is None else f" [{interval.low:.2f}, {interval.high:.2f}]"


def _p(value: float | None) -> str:
    return "no p" if value is None else p_text(value, 9_999)

"""Which of several settings is best on the half of the samples that is set aside for choosing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probe import chart
from probe.analyses.measures.condition_effect import difference, paired, share_interval
from probe.analyses.measures.condition_reading import ConditionReading, read_conditions
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Comparison, Figure, Finding, Interval, Measurement, Suggestion, Verdict
from probe.intervals import FEWEST_PROMPTS, all_agree, cluster_bootstrap
from probe.selection import LeftOut

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Which of these settings is best on the samples set aside for choosing?"
SOURCE = "This toolkit's own: chosen on one half of the samples, to be measured on the other"
_COLUMNS = (
    "condition", "chosen", "num_prompts", "accuracy", "accuracy_low", "accuracy_high",
    "answer_loss", "answer_loss_low", "answer_loss_high",
    "less_than_chosen", "less_low", "less_high",
)  # fmt: skip
_SHUFFLES: Final = 4_999
_AT_ONCE: Final = 128
By = Literal["accuracy", "answer_loss"]
Floats = NDArray[np.float64]


@analysis(question=QUESTION, source=SOURCE, does_without_attention=True)
def choose_condition(
    run: Run | Trace | Iterable[Trace],
    *,
    by: By = "accuracy",
    among: Sequence[str] | None = None,
    margin: float | None = None,
    half: Literal["find", "test", "both"] = "find",
    stage: str | None = None,
    seed: int = 0,
) -> Finding:
    """Choose, among conditions that have an intervention, the one with the best accuracy (or answer loss).

    Only prompts that all candidates read count. The other quantity breaks ties, then the name. The choice is what it
    `suggests`, whatever the verdict: a later stage plays it on the other half by `{from_finding: choose_condition}`.
    Doing nothing is no candidate: whether the choice helps is asked there (`compare_conditions`).

    The verdict says whether the choice mattered. Supported: the best leads the candidates' mean by more than it does
    with candidates shuffled within each prompt (p < 0.01). Refuted: every candidate lies within `margin` (10 points;
    0.1 nats per token) of it, with 95 % certainty. `among` names the candidates; without it all conditions that have
    an intervention and are no control are.

    What it does not mean: supported says that the settings differ, and not that the best one is better than doing
    nothing, nor that its lead holds on other samples: that is what the other half is for. Refuted says that it hardly
    matters which is taken.
    """
    margin = (10.0 if by == "accuracy" else 0.1) if margin is None else margin
    left_out = LeftOut()
    everything = read_conditions(run, left_out, half=half, stage=stage)
    here = [r for r in everything if stage in (None, r.stage)]
    candidates = _candidates([r for r in here if r.intervention and r.num_draws == 1], among, left_out)
    shared = _shared(candidates, by)
    for each in candidates:
        if lone := len({*each.prompts} - {*shared}):
            left_out.add(f"a prompt of {each.name} that not every candidate read", lone)
    said: dict[str, Any] = {
        "analysis": "choose_condition",
        "question": QUESTION,
        "definition": f"The condition with the best mean {_WORDS[by]} over the prompts that all candidates read.",
        "source": SOURCE,
        "parameters": {
            "by": by, "among": None if among is None else list(among), "margin": margin, "half": half, "stage": stage,
            "seed": seed,
        },
        "evidence": tuple(unit for each in candidates for prompt in shared for unit in each.prompts[prompt].units),
    }  # fmt: skip
    if not shared:
        return Finding(
            **said,
            headline="There is nothing to choose among",
            claim=f"No prompt of the {_half(half)} was answered under every candidate.",
            verdict="inconclusive",
            measured=Measurement(name=_WORDS[by], value=None, unit=_UNITS[by], n=0, dropped=left_out.total),
            notes=(*left_out.notes(), "It needs conditions with an intervention."),
        )
    found = _finding(said, candidates, shared, by, margin, half, left_out, seed)
    return found.model_copy(update={"control": _nothing(everything, candidates[0], shared, by, seed)})


_WORDS = {"accuracy": "share of right answers", "answer_loss": "loss of the right answer"}
_UNITS = {"accuracy": "%", "answer_loss": "nats per token"}


def _candidates(
    readings: Sequence[ConditionReading], among: Sequence[str] | None, left_out: LeftOut
) -> list[ConditionReading]:
    """Return the candidates; one that was not read, as where its stage was not played, is counted by name."""
    if among is None:
        return [each for each in readings if each.role not in ("control", "baseline") and each.asked]
    if len({*among}) < len(among):
        raise UsageError(f"among: a condition stands twice in {', '.join(among)}")
    if not among:
        raise UsageError("among: no condition is named")
    found = []
    for name in among if readings else ():
        own = [each for each in readings if name in (each.condition, each.name)]
        if len(own) > 1:
            raise UsageError(f"among: {name!r} could be {' or '.join(each.name for each in own)}")
        if not own:
            left_out.add(f"candidate {name!r}, of which nothing was read with an intervention")
        found += own
    return found


def _shared(candidates: Sequence[ConditionReading], by: By) -> list[str]:
    """Return the prompts of which every candidate has the quantity that is chosen by."""
    known = [
        {
            name
            for name, prompt in each.prompts.items()
            if math.isfinite(prompt.accuracy) and math.isfinite(getattr(prompt, by))
        }
        for each in candidates
    ]
    return sorted(set.intersection(*known)) if known else []


def _nothing(
    everything: Sequence[ConditionReading], candidate: ConditionReading, shared: Sequence[str], by: By, seed: int
) -> Measurement | None:
    """Return the same number with nothing done, where these prompts were read so; it is no candidate."""
    untouched = [
        r for r in everything if not r.intervention and r.role == "baseline" and r.workload == candidate.workload
    ]
    known = {prompt: getattr(r.prompts[prompt], by) for r in untouched for prompt in shared if prompt in r.prompts}
    known = {prompt: value for prompt, value in known.items() if math.isfinite(value)}
    if not known:
        return None
    values, names = [known[prompt] for prompt in sorted(known)], sorted(known)
    ends = share_interval(values, names, seed) if by == "accuracy" else cluster_bootstrap(values, names, seed=seed)
    return Measurement(
        name=f"{_WORDS[by]} with nothing done",
        value=float(np.mean(values)),
        unit=_UNITS[by],
        interval=ends,
        n=len(known),
    )


def _half(half: str) -> str:
    return "samples" if half == "both" else f"{half} half of the samples"


def _finding(
    said: dict[str, Any],
    candidates: list[ConditionReading],
    shared: list[str],
    by: By,
    margin: float,
    half: str,
    left_out: LeftOut,
    seed: int,
) -> Finding:
    accuracy = np.array([[c.prompts[p].accuracy for p in shared] for c in candidates])
    loss = np.array([[c.prompts[p].answer_loss for p in shared] for c in candidates])
    better, other = (accuracy, -loss) if by == "accuracy" else (-loss, accuracy)
    # Rounded, so that the order of a sum decides no tie.
    means, ties = better.mean(axis=1).round(9), _mean(other).round(9)
    order = sorted(range(len(candidates)), key=lambda i: (-means[i], -ties[i], candidates[i].name))
    first, n = order[0], len(shared)
    chosen = candidates[first]
    best = f"{accuracy[first].mean():.0f} %" if by == "accuracy" else f"{loss[first].mean():.3g} nats per token"
    p = _leads(better, seed)
    rows = [_less(chosen, candidates[i], shared, by, seed) for i in order]
    bounds = (-100.0, 100.0) if by == "accuracy" else None
    verdict: Verdict = "inconclusive"
    if n >= FEWEST_PROMPTS and p is not None and p < 0.01:
        verdict = "supported"
    elif len(candidates) > 1 and n >= FEWEST_PROMPTS and all(_near(each, margin, bounds, n) for each in rows[1:]):
        verdict = "refuted"
    listed = ", ".join(_shown(candidates[i].name, accuracy[i], loss[i], by) for i in order)
    others = f" of {len(candidates)} ({listed})" if len(candidates) > 1 else ", the only candidate"
    tested = f", p = {p:.2g} that it leads by chance" if p is not None else ""
    ends = [_ends(accuracy[i], loss[i], shared, seed) for i in order]
    value = float(accuracy[first].mean() if by == "accuracy" else loss[first].mean())
    kind, fields = next(iter((chosen.intervention or {}).items()))
    return Finding(
        **said,
        headline=f"{chosen.name} is best"
        if verdict == "supported"
        else f"{chosen.name} is chosen, {'though none is much worse' if verdict == 'refuted' else 'perhaps by chance'}",
        claim=f"On the {_half(half)} {chosen.name} is best{others} by {_WORDS[by]}: {best} (n = {n} prompts{tested}). "
        "What it is worth has to be measured on other samples.",
        verdict=verdict,
        measured=Measurement(
            name=f"{_WORDS[by]} with {chosen.name}, chosen on these samples",
            value=value,
            unit=_UNITS[by],
            interval=ends[0][0] if by == "accuracy" else ends[0][1],
            n=n,
            dropped=left_out.total,
        ),
        comparison=None
        if p is None
        else Comparison(
            name="the best's lead over the candidates' mean; candidates shuffled within each prompt",
            difference=float(means[first] - means.mean()),
            p_value=p,
            p_is_bound=p <= 1 / (1 + _SHUFFLES),
            n=n,
        ),
        columns=_COLUMNS,
        table=tuple(
            (
                candidates[i].name, i == first, n,
                *_cells(accuracy[i].mean(), end[0]), *_cells(loss[i].mean(), end[1]), *_cells(row[0], row[1]),
            )
            for i, end, row in zip(order, ends, rows, strict=True)
        ),
        figures=(_figure([candidates[i].name for i in order], accuracy[order].mean(axis=1), [e[0] for e in ends]),),
        suggests=(
            Suggestion(
                intervention=kind,
                fields=dict(fields),
                reason=f"{chosen.name} was best on the {_half(half)} ({best}, n = {n}); play it on the others.",
            ),
        ),
        notes=tuple(_notes(left_out, candidates, order, by, margin, half)),
    )  # fmt: skip


def _leads(better: Floats, seed: int) -> float | None:
    """Return the probability that the best leads the mean as far where candidates are shuffled within each prompt."""
    if len(better) < 2:
        return None
    generator = np.random.default_rng(seed)
    means = better.mean(axis=1)
    observed = float(means.max() - means.mean())
    as_far = 0
    for at in range(0, _SHUFFLES, _AT_ONCE):
        copies = np.broadcast_to(better, (min(_AT_ONCE, _SHUFFLES - at), *better.shape))
        drawn = generator.permuted(copies, axis=1).mean(axis=2)
        as_far += int((drawn.max(axis=1) - drawn.mean(axis=1) >= observed - 1e-9).sum())
    return (1 + as_far) / (1 + _SHUFFLES)


def _less(
    chosen: ConditionReading, other: ConditionReading, shared: Sequence[str], by: By, seed: int
) -> tuple[float, Interval | None]:
    """Return how much worse a candidate is than the chosen one, with its interval, paired by prompt."""
    pairs, _ = paired(other, {name: chosen.prompts[name] for name in shared})
    found = difference(pairs, by, seed)
    assert found is not None
    sign = -1.0 if by == "accuracy" else 1.0
    ends = found.interval
    turned = ends and ends.model_copy(
        update=dict(zip(("low", "high"), sorted((sign * ends.low, sign * ends.high)), strict=True))
    )
    return sign * found.difference + 0.0, turned


def _near(less: tuple[float, Interval | None], margin: float, bounds: tuple[float, float] | None, n: int) -> bool:
    ends = less[1]
    high = float("inf") if ends is None else ends.high
    return max(high, float(all_agree(0.0, n, bounds)[1]) if bounds is not None else high) <= margin


def _mean(values: Floats) -> Floats:
    known = np.isfinite(values)
    return np.asarray(np.where(known, values, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1))


def _ends(accuracy: Floats, loss: Floats, shared: Sequence[str], seed: int) -> tuple[Interval | None, Interval | None]:
    known = np.isfinite(loss)
    names = [name for name, there in zip(shared, known, strict=True) if there]
    of_loss = cluster_bootstrap(loss[known], names, seed=seed) if known.any() else None
    return share_interval(accuracy.tolist(), shared, seed), of_loss


def _shown(name: str, accuracy: Floats, loss: Floats, by: By) -> str:
    return f"{name} {accuracy.mean():.0f} %" if by == "accuracy" else f"{name} {loss.mean():.3g}"


def _cells(value: float, interval: Interval | None) -> tuple[JsonValue, ...]:
    ends = (None, None) if interval is None else (interval.low, interval.high)
    return tuple(
        None if each is None or not np.isfinite(each) else float(f"{each:.4g}") + 0.0 for each in (value, *ends)
    )


def _figure(names: Sequence[str], values: Floats, ends: Sequence[Interval | None]) -> Figure:
    shown = np.array([[v, v, v] if e is None else [v, e.low, e.high] for v, e in zip(values, ends, strict=True)]) / 100
    said = "; ".join(f"{name} {value:.0f} %" for name, value in zip(names[:12], values, strict=False))
    return chart.figure(
        "choice",
        f"{names[0]} is chosen",
        f"Share of prompts answered right under each candidate, best first, with 95 % intervals. {said}.",
        [
            chart.line(
                "answered right",
                list(range(len(names))),
                shown[:, 0],
                shown[:, 1],
                shown[:, 2],
                mode="markers",
                hovertemplate="%{y:.1%} right<extra></extra>",
            )
        ],
        {
            "xaxis": chart.axis(
                "",
                tickvals=list(range(len(names))),
                ticktext=[chart.shown(name) for name in names],
                range=[-0.5, len(names) - 0.5],
                showgrid=False,
            ),
            "yaxis": chart.share_axis("answered right"),
        },
    )


def _notes(
    left_out: LeftOut, candidates: Sequence[ConditionReading], order: Sequence[int], by: By, margin: float, half: str
) -> Iterator[str]:
    yield from left_out.notes()
    yield (
        f"Chosen on the {_half(half)}: its number here is the largest of {len(candidates)}, and is no measure of what "
        "it does on others."
    )
    if half == "both":
        yield "Every sample took part in the choice; none is left on which it could be measured."
    for i in order:
        yield f"{candidates[i].name}: {candidates[i].how}."
    unit = "points" if by == "accuracy" else "nats per token"
    yield f"Refuted means: every candidate lies within {margin:g} {unit} of the chosen one with 95 % certainty."

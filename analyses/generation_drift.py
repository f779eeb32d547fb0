"""Whether a model loses what its prompt asked for as its own output grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import JsonValue

from probe.analyses.figures.generation_drift import drift_figures
from probe.analyses.measures.output_growth import Grown, grown, sees_the_prompt
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS, by_cluster, cluster_bootstrap, p_text, sign_flip
from probe.selection import LeftOut, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Does the model lose what its prompt asks for as its own output grows?"
SOURCE = (
    "Constraints kept along a long output: Wu et al. 2024, LongGenBench (Spinning the Golden Thread), 2409.02076; "
    "4-gram repeats: Welleck et al. 2020, arXiv 1908.04319; late against early thirds and the attention left for the "
    "prompt: this toolkit's own"
)
_COLUMNS = ("item", "num_prompts", "kept", "low", "high", "kept_without_the_text", "loss_after_right_items")
_MEASURED = "constraints kept, last third of the items"
_CONTROL = "constraints kept, first third of the items"
_Third = Literal["first", "last"]
_THIRDS: tuple[_Third, _Third] = ("first", "last")
CERTAIN = 0.01
"""Level of the test of drift; stricter than usual, since many runs are looked at for drift."""


@analysis(question=QUESTION, source=SOURCE, needs={"span_mass": {}}, reads_tokens=True, does_without_attention=True)
def generation_drift(
    run: Run | Trace | Iterable[Trace],
    *,
    margin: float = 0.1,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Compare the constraints that a long answer keeps in its last third of items with those in its first.

    A constraint is kept where the response holds its phrase, whatever its case (fact `constraints` of a sample: item,
    kind, phrase; the workload `long_answer` states them; an item that the prompt has begun counts to no third).
    Supported: fewer are kept late than early, paired by prompt,
    p < 0.01 by flipping signs, and the interval lies below 0. Refuted: the loss lies below `margin` with 95 %
    certainty. Neither is said of a model that keeps no more early than where the text was left out (role
    `needle_absent`), or nothing at all.

    Two controls tell drift from difficulty: the loss of each item of the right answer when all items before it are
    right (teacher forced, so that no error of its own goes before), and the same with the text left out. Beside them:
    the share of attention that is left for the prompt (`span_mass` of the span `prompt`; the rest is on the output, or
    a learned sink), in the last eighth of the steps against the first, beside uniform attention, over heads that still
    see the prompt; tokens that end a repeat of 4 tokens, late and early; the longest repeat; and how many responses
    ended by themselves before the last item.

    What it does not mean: fewer constraints kept late does not say that the prompt was forgotten: later items may be
    harder, which the two controls tell, and a response that ends early keeps none of the rest. Attention does not prove
    that its loss is the cause. A phrase that is there is counted as kept, whether or not it makes sense.
    """
    if not 0 < margin < 1:
        raise UsageError(f"margin {margin}: expected a share above 0 and below 1")
    left_out = LeftOut()
    seen = [*grown(selected(run, half=half), left_out)]
    without = [*grown(selected(run, role="needle_absent", half=half), LeftOut())]
    thirds = [each for each in seen if len(each.items) >= 2]
    if len(thirds) < len(seen):
        left_out.add("fewer than two items to compare", len(seen) - len(thirds))
    said: dict[str, Any] = {
        "analysis": "generation_drift",
        "question": QUESTION,
        "definition": "Share of the constraints of the last third of the items that the response keeps, less that of "
        "the first third: the response holds the constraint's phrase, whatever its case.",
        "source": SOURCE,
        "parameters": {"margin": margin, "half": half, "seed": seed},
        "evidence": tuple(each.unit for each in [*seen, *without]),
        "columns": _COLUMNS,
        "table": tuple(_rows(seen, without, seed)),
        "figures": tuple(drift_figures(seen, without, seed)),
    }
    if not thirds:
        return Finding(
            **said,
            headline="Whether it loses what was asked for cannot be told",
            claim="No long answer with constraints to keep was decoded, so whether it drifts cannot be told.",
            verdict="inconclusive",
            measured=Measurement(name=_MEASURED, value=None, n=0, dropped=left_out.total),
            notes=(*left_out.notes(), "The workload `long_answer` states constraints, item by item."),
        )
    return _finding(said, thirds, without, left_out, margin, seed)


def third(each: Grown, which: _Third) -> tuple[int, int]:
    """Return the first and last item of the first or last third of the items that the model begins by itself."""
    size = max(1, len(each.items) // 3)
    return (each.items[0], each.items[size - 1]) if which == "first" else (each.items[-size], each.items[-1])


def _finding(
    said: dict[str, Any], seen: list[Grown], without: list[Grown], left_out: LeftOut, margin: float, seed: int
) -> Finding:
    prompts = [each.prompt for each in seen]
    early = [float(each.rate(*third(each, "first")) or 0.0) for each in seen]
    late = [float(each.rate(*third(each, "last")) or 0.0) for each in seen]
    difference = np.subtract(late, early)
    means = by_cluster(difference, prompts)
    ends = cluster_bootstrap(difference, prompts, bounds=(-1.0, 1.0), seed=seed)
    p_value = sign_flip(means, seed=seed)
    value = float(means.mean())
    able, ability = _able(seen, without, early, seed)
    verdict: Verdict = "inconclusive"
    if len(means) >= FEWEST_PROMPTS and able and ends is not None and p_value is not None:
        if value < 0 and p_value < CERTAIN and ends.high < 0:
            verdict = "supported"
        elif ends.low > -margin:
            verdict = "refuted"
    measured, control = (
        Measurement(
            name=name,
            value=float(by_cluster(values, prompts).mean()),
            interval=cluster_bootstrap(values, prompts, bounds=(0.0, 1.0), seed=seed),
            n=len(seen),
            dropped=dropped,
        )
        for name, values, dropped in ((_MEASURED, late, left_out.total), (_CONTROL, early, 0))
    )
    details = [*_details(seen, without, seed)]
    p_words = "" if p_value is None else f", {p_text(p_value, 9_999 if len(means) > 12 else None)}"
    interval = "" if ends is None else f" [{100 * ends.low:+.0f}, {100 * ends.high:+.0f}]"
    numbers = (
        f"{measured.value:.0%} of its constraints are kept in the last third of the items, {control.value:.0%} in the "
        f"first ({100 * value:+.0f} points{interval}{p_words}, n = {len(means)} prompt{'s' if len(means) > 1 else ''})"
    )
    start = {
        "supported": "The model loses what was asked for as its output grows",
        "refuted": f"The model loses less than {100 * margin:g} points of what was asked for as its output grows",
        "inconclusive": "Whether the model loses what was asked for as its output grows cannot be told",
    }[verdict]
    return Finding(
        **said,
        headline={
            "supported": f"It keeps {control.value:.0%} of what was asked early and {measured.value:.0%} late",
            "refuted": f"No drift: it keeps {control.value:.0%} of what was asked early and {measured.value:.0%} late",
            "inconclusive": "Whether it loses what was asked for cannot be told",
        }[verdict],
        claim=f"{start}: {numbers}{_clause(details)}.",
        verdict=verdict,
        measured=measured,
        control=control,
        comparison=Comparison(
            name="last third less first third, paired by prompt; signs flipped",
            difference=value,
            interval=ends,
            p_value=p_value,
            p_is_bound=p_value is not None and len(means) > 12 and p_value <= 1.001e-4,
            n=len(means),
        ),
        details=tuple(details),
        notes=(*left_out.notes(), *ability, *_notes(verdict, able, len(means), margin, seen)),
    )


def _able(seen: list[Grown], without: list[Grown], early: list[float], seed: int) -> tuple[bool, list[str]]:
    """Return whether the model keeps more early than by guessing, and a note that says how that was told."""
    guessed = {each.prompt: each.rate(*third(each, "first")) or 0.0 for each in without if len(each.items) >= 2}
    pairs = [(value - guessed[e.prompt], e.prompt) for e, value in zip(seen, early, strict=True) if e.prompt in guessed]
    if len(pairs) < 2:
        ends = cluster_bootstrap(early, [each.prompt for each in seen], bounds=(0.0, 1.0), seed=seed)
        able = ends is not None and ends.low > 0.05
        return able, [
            "The text was never left out: able to keep constraints means more than 5 % of those of the first third, "
            "with 95 % certainty."
        ]
    ends = cluster_bootstrap([v for v, _ in pairs], [p for _, p in pairs], bounds=(-1.0, 1.0), seed=seed)
    mean = float(np.mean([value for value, _ in pairs]))
    return ends is not None and ends.low > 0, [
        f"In the first third {100 * mean:+.0f} points are kept over what is with the text left out (n = {len(pairs)}); "
        "without more than that, with 95 % certainty, nothing can be lost."
    ]


def _mean(name: str, values: Sequence[float], prompts: Sequence[str], seed: int, unit: str = "") -> Measurement:
    unbounded = unit.startswith("nats") or unit == "tokens"
    ends: Interval | None = cluster_bootstrap(values, prompts, bounds=None if unbounded else (0.0, 1.0), seed=seed)
    value = float(by_cluster(values, prompts).mean())
    return Measurement(name=name, value=value, unit=unit, interval=ends, n=len(values))


def _details(seen: list[Grown], without: list[Grown], seed: int) -> Iterator[Measurement]:
    for name in _THIRDS:
        absent = [(each.rate(*third(each, name)), each.prompt) for each in without if len(each.items) >= 2]
        if known := [(value, prompt) for value, prompt in absent if value is not None]:
            title = f"constraints kept with the text left out, {name} third"
            yield _mean(title, [value for value, _ in known], [prompt for _, prompt in known], seed)
        lost = [(each.item_loss[slice(*_items(each, name))], each.prompt) for each in seen if each.item_loss]
        if lost:
            means, prompts = [float(np.mean(loss)) for loss, _ in lost], [prompt for _, prompt in lost]
            title = f"loss of the right answer after right items, {name} third"
            yield _mean(title, means, prompts, seed, "nats per token")
    yield from _attention(seen, seed)
    long = [each for each in seen if each.num_decoded >= 24]
    for name, part in (("first", 0), ("last", -1)):
        if long:
            values = [float(np.array_split(each.repeats, 3)[part].mean()) for each in long]
            title = f"tokens that end a repeat of 4 tokens, {name} third of the output"
            yield _mean(title, values, [each.prompt for each in long], seed)
    right = [(each.right_repeats, each.prompt) for each in seen if each.right_repeats is not None]
    if right:
        title = "tokens of the right answer that end a repeat of 4 tokens"
        yield _mean(title, [value for value, _ in right], [prompt for _, prompt in right], seed)
    longest = [float(each.longest_repeat) for each in seen]
    yield _mean("longest repeat", longest, [each.prompt for each in seen], seed, "tokens")
    ends = [each for each in seen if each.stopped is not None]
    if ends:
        early = [float(bool(each.stopped) and not _at_last(each)) for each in ends]
        yield _mean("ended by itself before the last item", early, [each.prompt for each in ends], seed)


def _items(each: Grown, which: _Third) -> tuple[int, int]:
    first, last = third(each, which)
    return first - 1, last


def _at_last(each: Grown) -> bool:
    return any(kept for (item, _), kept in each.kept.items() if item == each.num_items)


def _attention(seen: list[Grown], seed: int) -> Iterator[Measurement]:
    which = sees_the_prompt(seen)
    if which is None or not which.any():
        return
    known = [each for each in seen if each.prompt_share is not None and len(each.prompt_share) >= 8]
    if not known:
        return
    prompts = [each.prompt for each in known]
    for name, late in (("first", False), ("last", True)):
        shares, uniform = [], []
        for each in known:
            assert each.prompt_share is not None
            steps = len(each.prompt_share)
            size = max(1, steps // 8)
            part = slice(steps - size, steps) if late else slice(0, size)
            shares.append(float(np.nanmean(each.prompt_share[part][:, which])))
            uniform.append(float(each.uniform()[part].mean()))
        yield _mean(f"attention to the prompt, {name} eighth of the steps", shares, prompts, seed, "probability")
        name = f"uniform attention to the prompt, {name} eighth of the steps"
        yield Measurement(name=name, value=float(np.mean(uniform)), unit="probability", n=len(uniform))


def _clause(details: Sequence[Measurement]) -> str:
    of = {each.name: each.value for each in details}
    parts = []
    losses = [of.get(f"loss of the right answer after right items, {name} third") for name in ("first", "last")]
    if losses[0] is not None and losses[1] is not None:
        parts.append(f"after right items the right answer's loss is {losses[0]:.2g} early and {losses[1]:.2g} late")
    shares = [of.get(f"attention to the prompt, {name} eighth of the steps") for name in ("first", "last")]
    uniform = of.get("uniform attention to the prompt, last eighth of the steps")
    if shares[0] is not None and shares[1] is not None and uniform is not None:
        parts.append(f"attention to the prompt goes from {shares[0]:.2g} to {shares[1]:.2g} (uniform: {uniform:.2g})")
    repeats = [
        of.get(f"tokens that end a repeat of 4 tokens, {name} third of the output") for name in ("first", "last")
    ]
    if repeats[0] is not None and repeats[1] is not None:
        parts.append(f"repeats from {repeats[0]:.0%} to {repeats[1]:.0%} of the tokens")
    return "".join(f"; {part}" for part in parts)


def _rows(seen: list[Grown], without: list[Grown], seed: int) -> Iterator[tuple[JsonValue, ...]]:
    for item in range(1, max((each.num_items for each in seen), default=0) + 1):
        here = [(rate, each) for each in seen if (rate := each.rate(item, item)) is not None]
        if not here:
            continue
        values, prompts = [rate for rate, _ in here], [each.prompt for _, each in here]
        ends = cluster_bootstrap(values, prompts, bounds=(0.0, 1.0), seed=seed)
        absent = [rate for each in without if (rate := each.rate(item, item)) is not None]
        loss = [each.item_loss[item - 1] for _, each in here if len(each.item_loss) >= item]
        yield (
            item,
            len(here),
            _rounded(float(np.mean(values))),
            None if ends is None else _rounded(ends.low),
            None if ends is None else _rounded(ends.high),
            _rounded(float(np.mean(absent))) if absent else None,
            _rounded(float(np.mean(loss))) if loss else None,
        )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _notes(verdict: Verdict, able: bool, num_prompts: int, margin: float, seen: list[Grown]) -> Iterator[str]:
    yield f"Refuted means: the loss from the first third of the items to the last is below {100 * margin:g} points."
    if verdict == "inconclusive" and able:
        yield f"{num_prompts} prompts are too few to tell: four times as many halve the interval."
    if all(each.stopped is None for each in seen):
        yield "The samples name no end-of-sequence token, so whether a response ended early is not told."
    if all(each.prompt_share is None for each in seen):
        yield "span_mass was not captured, or there is no span `prompt`: attention to the prompt is not told."
    else:
        yield "Attention is over heads that still give the prompt anything late; a sink on its first token counts."

"""What a model's cache could lose, and what the needle would lose with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import JsonValue

from probe.analyses.figures.cache import cache_figures
from probe.analyses.measures.cache_policies import AWARE, POLICIES, CacheReading, Floats, cache_readings
from probe.analyses.measures.cache_width import RATIOS, channel_scores_kept, layer_similarities
from probe.analysis import Needs, analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS, by_cluster, cluster_bootstrap, sign_flip
from probe.selection import LeftOut, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Which tokens, channels, layers and heads could the cache lose, and what would the needle lose with them?"
SOURCE = (
    "Policies in one cut at the end of the prompt: StreamingLLM (Xiao et al. 2023, 2309.17453), SnapKV (Li et al. "
    "2024, 2404.14469), H2O (Zhang et al. 2023, 2306.14048; sums over past queries alone), TOVA (Oren et al. 2024, "
    "2401.06104), key norm (Devoto et al. 2024, 2406.11430); channels: ThinK (2407.21018, in kvpress' form); layers: "
    "MiniCache (2405.14366). Retained attention and its margin: this toolkit's own, of the form of MInference's score "
    "(2407.02490)"
)
HEADLINE = "SnapKV"
RANDOM = len(POLICIES) - 1
_COLUMNS = (
    "policy", "budget", "sees_the_question", "retained_attention", "low", "high", "retained_without_sinks",
    "needle_tokens_kept", "needle_attention_kept", "needle_low", "needle_high", "needle_kept_whole",
    "needle_kept_in_part",
)  # fmt: skip


def _needs(*, window: int = 32, ranks: int = 256, **_: Any) -> Needs:
    return {
        "top_keys": {"k": ranks},
        "window_mass": [{"window": window}, {"window": 1}],
        "received_mass": {},
        "key_norm": {},
        "key_channel_energy": {},
        "key_layer_similarity": {},
    }


@analysis(question=QUESTION, source=SOURCE, needs=_needs)
def kv_cache(
    run: Run | Trace | Iterable[Trace],
    *,
    budget: float = 0.25,
    budgets: Sequence[float] = (0.15, 0.25, 0.5),
    window: int = 32,
    ranks: int = 256,
    margin: float = 0.05,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Cut the prompt's cache by several policies, and measure the attention of the answer's queries on what is gone.

    Each policy keeps `budget` of the prompt's tokens in every key-value head, in one cut after the prompt's last query
    (row 0); the rows after it, which no policy has seen, are measured. *StreamingLLM*: the first 4 and the last tokens.
    *SnapKV*: the last `window`, and those that the last `window` queries gave most, each key's votes averaged with its
    four neighbours'. *H2O*: half the budget for the last tokens, half for those that all queries of the prompt together
    gave most (not normalised, which favours early tokens; a single cut, where the paper's evicts at each step). *Key
    norm*: the keys of smallest norm. *Random*: the control, four draws. Scores are means over the query heads of a
    group. Retained attention is 1 less what goes to evicted keys, on the attention of the whole cache: a model whose
    cache is cut attends anew, so that this says what is at stake and not what is answered. What lies below the captured
    `ranks` counts as lost, so that it is a lower bound; it is exact where `ranks` is at least the prompt's length.

    Supported: SnapKV's cut retains more than random eviction by more than `margin`, with 95 % certainty over prompts
    and by a sign-flip test; refuted: with the same certainty it does not. Policies that see the question, where the
    prompt ends with it, are marked: a cache that is cut before the question is known cannot use them.

    What it does not mean: attention that is retained is no answer that is kept: see `cache-budget`, which plays the
    policies. The cut is one at the end of the prompt, on the attention of the whole cache; a model whose cache was cut
    attends anew. Nothing is said of memory or speed.
    """
    chosen = tuple(sorted({*map(float, budgets), float(budget)}))
    if not chosen or not all(0 < each < 1 for each in chosen):
        raise UsageError(f"kv_cache: budgets lie between 0 and 1, not {list(budgets)}, {budget}")
    left_out, traces = LeftOut(), selected(run, half=half)
    readings = list(cache_readings(traces, chosen, window, seed, left_out))
    said: dict[str, Any] = {
        "analysis": "kv_cache",
        "question": QUESTION,
        "definition": (
            "Attention of the answer's queries after row 0 that does not go to tokens which a policy evicts when it "
            f"keeps {100 * budget:g} % of the prompt's in every key-value head; mean over rows, heads and layers, then "
            "over prompts."
        ),
        "source": SOURCE,
        "parameters": {
            "budget": budget, "budgets": list(chosen), "window": window, "ranks": ranks, "margin": margin, "half": half,
            "seed": seed,
        },
        "evidence": tuple(reading.unit for reading in readings),
    }  # fmt: skip
    if not readings:
        reasons = "; ".join(f"{reason} ({number})" for reason, number in left_out.reasons.items())
        return Finding(
            **said,
            claim=f"What the cache could lose could not be measured: {reasons or 'there is no prompt'}.",
            verdict="inconclusive",
            measured=Measurement(name=_name(HEADLINE, budget), value=None, unit="%", n=0, dropped=left_out.total),
            notes=left_out.notes(),
        )
    return _finding(said, traces, readings, chosen, chosen.index(float(budget)), margin, left_out, seed)


def _finding(
    said: dict[str, Any], traces: Sequence[Trace], readings: list[CacheReading], budgets: tuple[float, ...], at: int,
    margin: float, left_out: LeftOut, seed: int,
) -> Finding:  # fmt: skip
    prompts = [reading.prompt for reading in readings]
    retained = 100 * by_cluster([reading.retained.mean(axis=(2, 3)) for reading in readings], prompts)
    names = [str(i) for i in range(len(retained))]
    index = POLICIES.index(HEADLINE)
    measured = _measured(_name(HEADLINE, budgets[at]), retained[:, index, at], left_out.total, seed)
    control = _measured(_name("random", budgets[at]), retained[:, RANDOM, at], 0, seed)
    gain = retained[:, index, at] - retained[:, RANDOM, at]
    interval = cluster_bootstrap(gain, names, seed=seed)
    p = sign_flip(gain - 100 * margin, seed=seed)
    verdict: Verdict = "inconclusive"
    if interval is not None and len(retained) >= FEWEST_PROMPTS:
        if interval.low > 100 * margin and p is not None and (p < 0.05 or len(retained) == FEWEST_PROMPTS):
            verdict = "supported"
        elif interval.high <= 100 * margin:
            verdict = "refuted"
    rows = list(_rows(readings, prompts, budgets, seed))
    heads = by_cluster([reading.retained for reading in readings], prompts)
    notes = [
        *left_out.notes(),
        f"Used: {len(retained)} prompts. At most {100 * max(each.unseen for each in readings):.2g} % of attention "
        "lies below the captured ranks, and counts as lost.",
        f"Refuted means: with 95 % certainty the gain over random eviction is at most {100 * margin:g} points.",
        "SnapKV, TOVA and, in part, H2O choose after having seen the question, where the prompt ends with it; "
        "StreamingLLM and key norm do not.",
        "Kept whole: the share of key-value heads in which all of the needle's tokens stay; in part: any of them.",
        "No policy has seen the queries that are measured: sums over queries leave out those of the answer.",
        "Retained attention is on the whole cache's attention: it does not say what the model would answer.",
    ]
    if any("received_mass" in trace and "key_block" in trace["received_mass"].dims for trace in traces):
        notes.append("Scores were pooled over blocks of positions: a block's tokens have one score.")
    if len(retained) < FEWEST_PROMPTS:
        notes.append(f"Fewer than {FEWEST_PROMPTS} prompts: too few for a verdict; {FEWEST_PROMPTS} would do.")
    return Finding(
        **said,
        headline=_headline(verdict, budgets[at]),
        claim=_claim(measured, control, gain, interval, budgets[at], rows, verdict),
        verdict=verdict,
        measured=measured,
        control=control,
        comparison=Comparison(
            name=f"SnapKV less random, in points; sign-flip test of a gain of {100 * margin:g}",
            difference=float(gain.mean()), interval=interval, p_value=p, n=len(gain),
        ),
        details=tuple(_details(traces, heads, rows, budgets, at, seed)),
        columns=_COLUMNS,
        table=tuple(rows),
        figures=tuple(
            cache_figures(retained / 100, rows, heads[:, 0, at].mean(axis=0), _needle(readings, at), budgets, at, seed)
        ),
        notes=tuple(notes),
    )  # fmt: skip


def _needle(readings: list[CacheReading], at: int) -> Floats:
    """Return each head's share of the needle's attention that the headline's policy keeps, mean over the prompts in
    which it has any, `[layer head]`."""
    each = np.stack([reading.needle_by_head[POLICIES.index(HEADLINE), at] for reading in readings])
    number = np.isfinite(each).sum(axis=0)
    found: Floats = np.divide(np.nansum(each, axis=0), number, out=np.full(number.shape, np.nan), where=number > 0)
    return found


def _name(policy: str, budget: float) -> str:
    return f"attention retained by {policy} at {100 * budget:g} % of the tokens"


def _measured(name: str, values: Floats, dropped: int, seed: int) -> Measurement:
    interval = cluster_bootstrap(values, [str(i) for i in range(len(values))], bounds=(0.0, 100.0), seed=seed)
    return Measurement(
        name=name, value=float(values.mean()), unit="%", interval=interval, n=len(values), dropped=dropped
    )


def _rows(
    readings: list[CacheReading], prompts: list[str], budgets: tuple[float, ...], seed: int
) -> Iterator[tuple[JsonValue, ...]]:
    """Yield a row for each policy and budget; shares of 1."""
    for p, policy in enumerate(POLICIES):
        for b, budget in enumerate(budgets):
            whole = [float(reading.retained[p, b].mean()) for reading in readings]
            low, high = _ends(whole, prompts, seed)
            apart = float(by_cluster([float(r.without_sinks[p, b].mean()) for r in readings], prompts).mean())
            there = [r for r in readings if np.isfinite(r.needle_attention[p, b])]
            tokens = [float(r.needle_tokens[p, b]) for r in readings if np.isfinite(r.needle_tokens[p, b])]
            needle = [float(r.needle_attention[p, b]) for r in there]
            needle_low, needle_high = _ends(needle, [r.prompt for r in there], seed) if there else (None, None)
            numbers = [
                float(by_cluster(whole, prompts).mean()),
                low,
                high,
                apart,
                float(np.mean(tokens)) if tokens else None,
            ]
            kept = float(by_cluster(needle, [r.prompt for r in there]).mean()) if there else None
            found = [r for r in readings if np.isfinite(r.needle_whole[p, b])]
            names = [r.prompt for r in found]
            by_span = [
                float(by_cluster([float(of(r)[p, b]) for r in found], names).mean()) if found else None
                for of in (attrgetter("needle_whole"), attrgetter("needle_in_part"))
            ]
            numbers = [*numbers, kept, needle_low, needle_high, *by_span]
            rounded = [None if x is None else round(x, 5) for x in numbers]
            yield (policy, budget, AWARE[policy], *rounded)


def _ends(values: list[float], prompts: list[str], seed: int) -> tuple[float | None, float | None]:
    interval = cluster_bootstrap(values, prompts, bounds=(0.0, 1.0), seed=seed)
    return (None, None) if interval is None else (interval.low, interval.high)


def _details(
    traces: Sequence[Trace], heads: Floats, rows: list[tuple[JsonValue, ...]], budgets: tuple[float, ...], at: int,
    seed: int,
) -> Iterator[Measurement]:  # fmt: skip
    n = len(heads)
    for row in rows:
        said = dict(zip(_COLUMNS, row, strict=True))
        if said["budget"] == budgets[at] and isinstance(kept := said["needle_attention_kept"], float):
            low, high = said["needle_low"], said["needle_high"]
            interval = None
            if isinstance(low, float) and isinstance(high, float):
                interval = Interval(low=100 * low, high=100 * high, method="BCa bootstrap over prompts")
            name = f"the needle's attention kept by {said['policy']}"
            yield Measurement(name=name, value=100 * kept, unit="%", interval=interval, n=n)
    free = 100 * float((heads[:, 0, at].mean(axis=0) >= 0.95).mean())
    yield Measurement(
        name="heads that lose less than 5 % with the first and last tokens alone", value=free, unit="%", n=n
    )
    if channels := channel_scores_kept(traces):
        for i, ratio in enumerate(RATIOS):
            values = [100 * float(each[i].mean()) for each in channels.values()]
            name = (
                f"ThinK's score kept without {100 * ratio:g} % of key channels (random channels: {100 * (1 - ratio):g})"
            )
            interval = cluster_bootstrap(values, list(channels), bounds=(0.0, 100.0), seed=seed)
            yield Measurement(name=name, value=float(np.mean(values)), unit="%", interval=interval, n=len(values))
    similar = [each for each in layer_similarities(traces).values() if np.isfinite(each).any()]
    if similar:
        mean = np.mean(similar, axis=0)
        top = int(np.nanargmax(mean))
        name = f"cosine of keys with the layer before, the largest: layer {top} (MiniCache)"
        yield Measurement(name=name, value=float(mean[top]), n=len(similar))


def _headline(verdict: Verdict, budget: float) -> str:
    if verdict == "supported":
        return f"A cache of {100 * budget:g} % of the tokens keeps more than chance of the attention to come"
    if verdict == "refuted":
        return "Votes of the last queries keep no more attention than random eviction"
    return "What the cache could lose cannot be told"


def _claim(
    measured: Measurement, control: Measurement, gain: Floats, interval: Interval | None, budget: float,
    rows: list[tuple[JsonValue, ...]], verdict: Verdict,
) -> str:  # fmt: skip
    ends = "" if interval is None else f" [{interval.low:.1f}, {interval.high:.1f}]"
    told = "" if verdict != "inconclusive" else "What the cache could lose cannot be told: "
    text = (
        f"{told}with {100 * budget:g} % of the tokens SnapKV's cut retains {measured.value:.1f} % of the attention to "
        f"come, {gain.mean():.1f} points{ends} more than random eviction's {control.value:.1f} %"
    )
    kept = {row[0]: row[8] for row in rows if row[1] == budget}
    snap, stream = kept.get(HEADLINE), kept.get("StreamingLLM")
    if isinstance(snap, float) and isinstance(stream, float):
        text += f"; of that on the needle it keeps {100 * snap:.0f} %, StreamingLLM {100 * stream:.0f} %"
    text = text[0].upper() + text[1:]
    return f"{text} (n = {measured.n} prompt{'' if measured.n == 1 else 's'})."

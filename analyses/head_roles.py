"""Which roles heads play beside retrieval, from streaming to induction, and which layers are lazy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from scipy import stats

from probe.analyses.figures.roles import role_figures
from probe.analyses.measures.role_reading import NUM_SINK, ROLES, SHAPES, Floats, RoleReading, role_readings
from probe.analysis import Needs, analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Suggestion, Verdict
from probe.intervals import FEWEST_PROMPTS, by_cluster, cluster_bootstrap, mean_ends, percentiles, resamples
from probe.selection import LeftOut, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Which roles do heads play beside retrieval, and which could do with the first and the last tokens alone?"
SOURCE = (
    "Streaming: sinks and recent tokens of Xiao et al. 2023 (2309.17453) and DuoAttention, 2410.10819, by attention "
    "mass rather than by trained gates; lazy layers: LightTransfer / SimLayerKV, 2410.13846; recency: named by "
    "RecurFormer, 2410.12850; previous token, duplicates and induction: Olsson et al. 2022, 2209.11895. "
    "Scores, thresholds of heads and the control of matches: this toolkit's own"
)
LAZY: Final = {"Llama 2": 0.65, "Mistral": 0.8, "Qwen": 0.85, "Llama 3": 0.9}
"""Published thresholds of lazy layers, by family."""
RATE: Final = 0.05
"""False-discovery rate over heads and roles."""
_DRAWS = 100
MARGIN: Final = 0.1
"""By how much attention must exceed what goes there by chance."""
_COLUMNS = (
    "layer",
    "head",
    "roles",
    *(r.replace(" ", "_") for r in ROLES),
    "recency_without_sinks",
    "kv_head",
    "could_stream",
    "direct_logit",
    *(shape.lower().replace(" ", "_").replace("-", "_") for shape in SHAPES),
    "best_shape",
)


def _needs(*, recent: int = 32, lazy_window: int = 1024, **_: Any) -> Needs:
    return {
        "sink_mass": {},
        "recent_mass": [{"recent": recent}, {"recent": lazy_window}],
        "offset_mass": {},
        "match_mass": [{}, {"by": "induction"}],
        "distance_histogram": {},
        "received_mass": {},
        "span_logit": {},
        "sparse_shape_mass": {},
    }


@analysis(question=QUESTION, source=SOURCE, needs=_needs, reads_tokens=True)
def head_roles(
    run: Run | Trace | Iterable[Trace],
    *,
    recent: int = 32,
    lazy_window: int = 1024,
    streaming: float = 0.9,
    threshold: float = 0.3,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Name each head's roles by where its attention goes, against what would go there by its reach alone.

    Five scores a head, each a mean over queries and then over prompts. *Streaming*: mass on the first 4 keys and on the
    last `recent`, the query's own among them; *recency*: on the last `recent` alone; both over queries at positions
    from 4 · `recent` on. *Previous token*: on the key before the query, over all queries but the first. *Duplicate
    token*: on earlier keys with the query's token; *induction*: on keys that follow one; over the queries whose token
    stood before. A head has a
    role iff its score lies above the threshold (`streaming` for the first two, `threshold` for the others) and above
    chance by 0.1, each with 95 % certainty over prompts, and its excess over chance passes Benjamini and Hochberg's
    procedure at 5 % over all heads and roles (one-sided t tests over prompts). Chance is uniform attention over the
    keys that the layer's window lets a query see; for duplicates and induction, the head's own attention by distance
    spread over whatever stands there. So a window that leaves nothing but recent keys makes no recency head.
    Supported: a head has a role. Refuted: with the same certainty no head lies above a threshold and chance by 0.1.

    A layer is *lazy* where the prompt's last query gives the first 4 and the last `lazy_window` keys more than a
    published threshold, mean over its heads; the published score leaves the query's own key out, which this cannot. The
    control flips the sign of a prompt's excess at random, which leaves no role to be found. MInference's shapes
    (2407.02490) are no roles, and say nothing of where attention goes beyond chance: the table has beside the scores
    what an A-shape, the vertical-and-slash and the block-sparse shape retain of each head's attention at one budget,
    one key in eight (`sparse_shape_mass`), and which of them most, for layers that see their whole past and prompts
    long enough for blocks of 32 (256 tokens). Heads that copy answers are `retrieval_heads`.

    What it does not mean: attention is not use, and a role is a habit on these texts. That a head looks at the first
    and the last tokens alone does not say that it could do with them: `full_and_streaming_heads` tries. Refuted says
    that no head has the role above chance by these thresholds. The table has beside it what a head writes directly into
    the right answer's logit over a distractor's (`span_logit_all`), where the model lets that be known.
    """
    if recent < 1 or lazy_window < 1 or not (0 < threshold < 1 and 0 < streaming < 1):
        raise UsageError("head_roles: recent and lazy_window are at least 1, thresholds lie between 0 and 1")
    left_out = LeftOut()
    readings = list(role_readings(selected(run, half=half), recent, lazy_window, left_out))
    limits = np.array([streaming, streaming, threshold, threshold, threshold])
    said: dict[str, Any] = {
        "analysis": "head_roles",
        "question": QUESTION,
        "definition": _definition(recent, lazy_window, streaming, threshold),
        "source": SOURCE,
        "parameters": {
            "recent": recent, "lazy_window": lazy_window, "streaming": streaming, "threshold": threshold,
            "half": half, "seed": seed,
        },
        "evidence": tuple(reading.unit for reading in readings),
    }  # fmt: skip
    if not readings:
        reasons = "; ".join(f"{reason} ({number})" for reason, number in left_out.reasons.items())
        return Finding(
            **said,
            claim=f"No head's role could be measured: {reasons or 'there is no prompt'}.",
            verdict="inconclusive",
            measured=Measurement(name="heads with a role", value=None, unit="%", n=0, dropped=left_out.total),
            notes=left_out.notes(),
        )
    return _finding(said, readings, _measure(readings, limits, seed), limits, _group(run, half), left_out, seed)


@dataclass(frozen=True)
class _Heads:
    """Every head's numbers over the prompts, `[role layer head]` each but the drawn ones."""

    score: Floats
    low: Floats
    high: Floats
    chance: Floats
    excess_low: Floats
    roles: NDArray[np.bool_]
    by_prompt: Floats
    """Scores, `[prompt role layer head]`."""
    chance_by_prompt: Floats
    apart: Floats
    logit: Floats | None
    """What each adds to the answer's logit, `[layer head]`, where it was captured."""
    shapes: Floats | None
    """What MInference's shapes retain, `[shape layer head]`, where that was captured; NaN where a layer sees no more
    than a window."""
    num_prompts: int


def _measure(readings: list[RoleReading], limits: Floats, seed: int) -> _Heads:
    prompts = [reading.prompt for reading in readings]
    score = by_cluster([reading.scores for reading in readings], prompts)
    chance = by_cluster([reading.chance for reading in readings], prompts)
    low, high = mean_ends(score, bounds=(0.0, 1.0), seed=seed)
    excess_low, _ = mean_ends(score - chance, seed=seed)
    over = limits[:, None, None]
    roles = np.zeros(low.shape, bool)
    if len(score) >= 2:
        roles = (low > over) & (excess_low > MARGIN) & (_adjusted(score - chance) < RATE)
    return _Heads(
        score.mean(axis=0), low, high, chance.mean(axis=0), excess_low, roles, score, chance,
        by_cluster([reading.recency_apart for reading in readings], prompts).mean(axis=0), _logit(readings),
        _shapes(readings), len(score),
    )  # fmt: skip


def _logit(readings: list[RoleReading]) -> Floats | None:
    there = [(reading.prompt, reading.logit) for reading in readings if reading.logit is not None]
    return by_cluster([each for _, each in there], [prompt for prompt, _ in there]).mean(axis=0) if there else None


def _shapes(readings: list[RoleReading]) -> Floats | None:
    there = [(reading.prompt, reading.shapes) for reading in readings if reading.shapes is not None]
    if not there:
        return None
    # What a layer with a window has none of stands aside from the means of the others.
    seen = np.isfinite([each for _, each in there]).all(axis=0)
    mean = by_cluster([np.where(seen, each, 0.0) for _, each in there], [prompt for prompt, _ in there]).mean(axis=0)
    return np.where(seen, mean, np.nan)


def _adjusted(excess: Floats) -> Floats:
    """Return p-values that the mean excess is not above 0, adjusted over heads and roles, `[role layer head]`."""
    mean, spread = excess.mean(axis=0), excess.std(axis=0, ddof=1)
    # Prompts that agree to rounding leave nothing to test.
    flat = spread <= 1e-9 * np.maximum(1.0, np.abs(mean))
    t = mean / np.where(flat, 1.0, spread / len(excess) ** 0.5)
    p = np.where(flat, np.where(mean > 1e-6, 0.0, 1.0), stats.t.sf(t, len(excess) - 1))
    return np.asarray(stats.false_discovery_control(p.ravel()).reshape(p.shape), np.float64)


def _by_signs(heads: _Heads, limits: Floats, seed: int) -> float:
    """Return the share of heads that means and the false-discovery rate name where signs of the excess are random."""
    excess, generator = heads.by_prompt - heads.chance_by_prompt, np.random.default_rng(seed)
    named = []
    for _ in range(_DRAWS):
        drawn = excess * generator.choice([-1.0, 1.0], size=(len(excess), 1, 1, 1))
        mean = drawn.mean(axis=0)
        roles = (heads.chance + mean > limits[:, None, None]) & (mean > MARGIN) & (_adjusted(drawn) < RATE)
        named.append(float(roles.any(axis=0).mean()))
    return float(np.mean(named))


def _group(run: Run | Trace | Iterable[Trace], half: str | None) -> int:
    """Return how many query heads share a key-value head, 1 where the traces do not say."""
    for trace in selected(run, half=half):
        heads, kv_heads = trace.dataset.sizes.get("head"), trace.dataset.sizes.get("kv_head")
        if heads and kv_heads:
            return int(heads // kv_heads)
    return 1


def _finding(
    said: dict[str, Any], readings: list[RoleReading], heads: _Heads, limits: Floats, group: int, left_out: LeftOut,
    seed: int,
) -> Finding:  # fmt: skip
    n, any_role = heads.num_prompts, heads.roles.any(axis=0)
    measured = _share(
        "heads with a role", heads.by_prompt, heads.chance_by_prompt, limits, heads.roles, n, left_out.total, seed
    )
    control = None
    if n > 1:
        name = "heads named where each prompt's excess over chance has a random sign"
        value = 100 * _by_signs(heads, limits, seed)
        control = Measurement(name=name, value=value, unit="%", n=n)
    verdict = _verdict(heads, limits)
    streams = heads.score[0] > limits[0]
    cache = streams if group == 1 or streams.shape[1] % group else streams.reshape(len(streams), -1, group).all(axis=-1)
    notes = [
        *left_out.notes(),
        f"Used: {n} prompts, {any_role.size} heads, {any_role.size * len(ROLES)} tests.",
        "Refuted means: with 95 % certainty no head's mean score reaches a threshold, or none exceeds chance by "
        f"{MARGIN:g}.",
        "Could stream: all query heads of the key-value head stream, so that the first and the last tokens would do "
        "for it; a window that leaves no others makes it so by itself. DuoAttention trains gates instead and takes a "
        "quantile of them; attention mass is this toolkit's own stand-in, to be tried before it is trusted.",
        "Chance of duplicates and induction spreads a head's mass evenly over each doubling of the distance.",
    ]
    if n < FEWEST_PROMPTS:
        notes.append(f"Fewer than {FEWEST_PROMPTS} prompts: too few for a verdict; {FEWEST_PROMPTS} would do.")
    if all(reading.lazy is None for reading in readings):
        notes.append(
            "No prompt is longer than the window of lazy layers, so that each would count as lazy: not measured."
        )
    return Finding(
        **said,
        headline=_headline(heads, verdict),
        claim=_claim(heads, measured, verdict),
        verdict=verdict,
        measured=measured,
        control=control,
        comparison=Comparison(
            name="share of heads with a role less that under random signs",
            difference=measured.value - control.value,
            n=n,
        )
        if control is not None and control.value is not None and measured.value is not None
        else None,
        details=tuple(_details(readings, heads, said["parameters"]["lazy_window"], cache, seed)),
        columns=_COLUMNS,
        table=tuple(_rows(heads, group, cache)),
        figures=tuple(
            role_figures(heads.score, heads.low, heads.high, heads.chance, heads.roles, _lazy(readings), seed)
        ),
        suggests=tuple(_suggestions(heads)),
        notes=tuple(notes),
    )


def _share(
    name: str, score: Floats, chance: Floats, limits: Floats, roles: NDArray[np.bool_], n: int, dropped: int, seed: int
) -> Measurement:
    """Return the share of heads with one of the roles; its interval names roles anew, by means alone, in resamples."""
    interval = None
    if n > 1:
        weights = resamples(n, seed=seed) / n
        passed = np.zeros((len(weights), *roles.shape[1:]), bool)
        for role, limit in enumerate(limits):
            drawn = np.tensordot(weights, score[:, role], 1)
            passed |= (drawn > limit) & (drawn - np.tensordot(weights, chance[:, role], 1) > MARGIN)
        low, high = percentiles(100 * passed.reshape(len(passed), -1).mean(axis=-1))
        value = 100 * float(roles.any(axis=0).mean())
        # Means alone name a head that certainty does not: the share that is certain may lie below all of them.
        interval = Interval(low=min(float(low), value), high=max(float(high), value), method="bootstrap over prompts")
    return Measurement(
        name=name, value=100 * float(roles.any(axis=0).mean()), unit="%", interval=interval, n=n, dropped=dropped
    )


def _verdict(heads: _Heads, limits: Floats) -> Verdict:
    if heads.num_prompts < FEWEST_PROMPTS:
        return "inconclusive"
    if heads.roles.any():
        return "supported"
    possible = (heads.high > limits[:, None, None]) & (heads.high - heads.chance > MARGIN)
    return "inconclusive" if possible.any() else "refuted"


def _lazy(readings: list[RoleReading]) -> Floats | None:
    """Return lazy scores `[prompt layer]` of the prompts that have them."""
    there = [(reading.prompt, reading.lazy) for reading in readings if reading.lazy is not None]
    return by_cluster([score for _, score in there], [prompt for prompt, _ in there]) if there else None


def _details(
    readings: list[RoleReading], heads: _Heads, window: int, cache: NDArray[np.bool_], seed: int
) -> Iterator[Measurement]:
    n = heads.num_prompts
    for index, role in enumerate(ROLES):
        named = heads.roles[index]
        yield Measurement(name=f"heads of the role: {role}", value=100 * float(named.mean()), unit="%", n=n)
        top = np.unravel_index(int(heads.score[index].argmax()), named.shape)
        at = (int(top[0]), int(top[1]))
        values = heads.by_prompt[:, index][(slice(None), *at)]
        interval = cluster_bootstrap(values, [str(i) for i in range(n)], bounds=(0.0, 1.0), seed=seed)
        what = f"largest score, {role}: head {at}"
        yield Measurement(name=what, value=float(heads.score[index][at]), interval=interval, n=n)
        yield Measurement(name=f"chance, {role}: head {at}", value=float(heads.chance[index][at]), n=n)
    name = "key-value heads that could stream (this toolkit's own)"
    yield Measurement(name=name, value=100 * float(cache.mean()), unit="%", n=n)
    if heads.shapes is not None and np.isfinite(heads.shapes).any():
        seen = np.isfinite(heads.shapes).all(axis=0)
        best = heads.shapes[:, seen].argmax(axis=0)
        for index, shape in enumerate(SHAPES):
            name = f"heads of which MInference's shape retains most at one key in eight: {shape}"
            yield Measurement(name=name, value=100 * float((best == index).mean()), unit="%", n=n)
    lazy = _lazy(readings)
    if lazy is None:
        return
    for family, limit in LAZY.items():
        value = 100 * float((lazy.mean(axis=0) > limit).mean())
        name = f"lazy layers at a window of {window}, above {limit:g} (the threshold for {family}, at 1024)"
        yield Measurement(name=name, value=value, unit="%", n=len(lazy), dropped=n - len(lazy))


def _rows(heads: _Heads, group: int, cache: NDArray[np.bool_]) -> Iterator[tuple[JsonValue, ...]]:
    """Yield a row for each head, those with a role first."""
    layers, num = heads.roles.shape[1:]
    plays = np.asarray(heads.roles.any(axis=0))
    order = sorted(np.ndindex(layers, num), key=lambda at: (not plays[at], at))
    for at in order:
        roles = [role for index, role in enumerate(ROLES) if heads.roles[(index, *at)]]
        numbers = [float(f"{heads.score[(index, *at)]:.4g}") for index in range(len(ROLES))]
        kv_head = at[1] if cache.shape[1] == num else at[1] // group
        apart = float(f"{heads.apart[at]:.4g}")
        logit = None if heads.logit is None else float(f"{heads.logit[at]:.4g}")
        shapes: list[JsonValue] = [None] * (len(SHAPES) + 1)
        if heads.shapes is not None and np.isfinite(each := heads.shapes[(slice(None), *at)]).all():
            shapes = [*(float(f"{value:.4g}") for value in each), list(SHAPES)[int(each.argmax())]]
        yield (*at, ", ".join(roles), *numbers, apart, kv_head, bool(cache[at[0], kv_head]), logit, *shapes)


def _suggestions(heads: _Heads) -> Iterator[Suggestion]:
    for index in (4, 3, 2):
        named = [[int(layer), int(head)] for layer, head in np.argwhere(heads.roles[index])]
        if named:
            yield Suggestion(
                intervention="ablate_heads",
                fields={"heads": named, "form": "zero", "phase": "both"},  # type: ignore[dict-item]
                reason=f"If what these heads do ({ROLES[index]}) is of use, removing them costs more than others do.",
            )


def _definition(recent: int, lazy_window: int, streaming: float, threshold: float) -> str:
    return (
        f"Mean attention on the first {NUM_SINK} and last {recent} keys (streaming), on the last {recent} (recency), "
        f"over queries from position {4 * recent} on; on the key before (previous token), on earlier keys with the "
        "query's token (duplicate) and on keys that follow one (induction), over queries whose token stood before. "
        f"A role: above {streaming:g} for the first two, {threshold:g} for the others, and {MARGIN:g} above chance, "
        f"with 95 % certainty each, at a false-discovery rate of {RATE:g}. Lazy layer: attention of the prompt's last "
        f"query on the first {NUM_SINK} and the last {lazy_window} keys, its own included, mean over heads. Per query "
        "head."
    )


def _headline(heads: _Heads, verdict: Verdict) -> str:
    if verdict == "inconclusive":
        return "Which roles heads play cannot be told"
    num = int(heads.roles.any(axis=0).sum())
    return f"{num or 'None'} of {heads.roles[0].size} heads {'plays' if num == 1 else 'play'} one of five roles"


def _claim(heads: _Heads, measured: Measurement, verdict: Verdict) -> str:
    n = f"n = {heads.num_prompts} prompt{'' if heads.num_prompts == 1 else 's'}"
    counts = ", ".join(f"{int(heads.roles[index].sum())} {role}" for index, role in enumerate(ROLES))
    share = f"{measured.value:.1f} %"
    if measured.interval is not None:
        share += f" [{measured.interval.low:.1f}, {measured.interval.high:.1f}]"
    if verdict == "refuted":
        return f"No head's attention goes to a role's place by more than its reach gives ({n})."
    told = "" if verdict == "supported" else "Which roles heads play cannot be told: "
    return f"{told}{share} of heads play a role with certainty ({counts}; a head may play several; {n})."

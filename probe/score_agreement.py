"""How far a run's retrieval scores agree with a score file in the form that Wu et al. 2024 publish theirs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.copying import Counting, SuccessRule, read, success
from probe.errors import NotAvailable, UsageError
from probe.finding import Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS, by_cluster, percentiles, resamples
from probe.selection import LeftOut, answered, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

Floats = NDArray[np.float64]
Head = tuple[int, int]

DRAWS: Final = 2_000
QUESTION = "Do the heads score as in the score file?"
SOURCE = (
    "Score files: Wu et al. 2024, Retrieval Head Mechanistically Explains Long-Context Factuality, arXiv 2404.15574, "
    "the repository's head_score; what counts as agreement is this toolkit's own"
)


def read_score_file(path: str | Path) -> dict[Head, Floats]:
    """Read a JSON object {"layer-head": [a score for every instance]}, as the authors publish it.

    Raises NotAvailable where there is no such file, UsageError naming what in it is not of this form: heads must have
    as many scores each, all finite.
    """
    path = Path(path)
    if not path.is_file():
        raise NotAvailable(f"there is no score file {path}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict) or not value:
        raise UsageError(f'{path}: expected {{"layer-head": [scores]}}')
    scores: dict[Head, Floats] = {}
    for name, listed in value.items():
        found = re.fullmatch(r"(\d+)-(\d+)", name)
        if not found:
            raise UsageError(f"{path}: {name!r} is no head; expected `layer-head`, such as 16-19")
        if not isinstance(listed, list) or not all(_is_number(each) for each in listed):
            raise UsageError(f"{path}: head {name}: expected a list of finite numbers")
        scores[int(found[1]), int(found[2])] = np.asarray(listed, np.float64)
    lengths = {len(each) for each in scores.values()}
    if len(lengths) > 1 or lengths == {0}:
        raise UsageError(f"{path}: heads have from {min(lengths)} to {max(lengths)} scores; each must have as many")
    return scores


def compare_scores(
    run: Run | Trace | Iterable[Trace],
    scores: str | Path,
    *,
    top: Sequence[int] = (10, 30),
    least: float = 0.8,
    counting: Counting = "occurrences",
    success_rule: SuccessRule = "recall",
    seed: int = 0,
) -> Finding:
    """Compare the heads' mean scores in a run with a score file: Pearson's r, and how many of the top heads are shared.

    A run's score is that of `retrieval_heads`, counted as the authors' code does (steps rather than distinct tokens,
    over the answer's place, where more than half of the answer's tokens are given). Intervals resample the run's
    prompts and the file's instances, each by themselves. Supported: r is at least `least` with 95 % certainty;
    refuted: it is below. The control is what heads ranked at random would share. Raises UsageError where the heads are
    not the same.
    """
    published = read_score_file(scores)
    left_out = LeftOut()
    readings = []
    for trace, outcome in answered(selected(run), left_out):
        rule, succeeded = success(trace.sample, outcome, success_rule)
        if not succeeded:
            left_out.add(f"the answer was wrong (success rule: {rule})")
        elif (reading := read(trace, outcome, "needle_value", counting, left_out)) is not None:
            readings.append(reading)
    said: dict[str, Any] = {
        "analysis": "compare_scores",
        "question": QUESTION,
        "definition": f"Pearson's r over heads between mean scores of the run and of {Path(scores).name}.",
        "source": SOURCE,
        "parameters": {
            "scores": str(scores),
            "top": list(top),
            "least": least,
            "counting": counting,
            "success_rule": success_rule,
            "seed": seed,
        },
    }
    if not readings:
        return Finding(
            **said,
            claim="No retrieval succeeded, so no head has a score to compare.",
            verdict="inconclusive",
            measured=Measurement(name="Pearson's r over heads", value=None, n=0, dropped=left_out.total),
            notes=left_out.notes(),
        )
    exists = np.any([reading.exists for reading in readings], axis=0)
    heads = [(int(layer), int(head)) for layer, head in np.argwhere(exists)]
    if {*heads} != {*published}:
        raise UsageError(
            f"{scores} scores {len(published)} heads, up to {max(published)}, and the run has {len(heads)}, up to "
            f"{max(heads)}: another model's"
        )
    too_many = [k for k in top if not 1 <= k <= len(heads)]
    if too_many:
        raise UsageError(f"top {too_many[0]}: there are {len(heads)} heads")
    own = by_cluster([reading.score for reading in readings], [reading.prompt for reading in readings])[:, exists]
    theirs = np.stack([published[head] for head in heads], axis=1)
    return _finding(said, heads, own, theirs, top, least, seed, left_out)


def _finding(
    said: dict[str, Any],
    heads: Sequence[Head],
    own: Floats,
    theirs: Floats,
    top: Sequence[int],
    least: float,
    seed: int,
    left_out: LeftOut,
) -> Finding:
    n, means = len(own), (own.mean(0), theirs.mean(0))
    drawn = _drawn(own, seed), _drawn(theirs, seed + 1)
    r = float(_pearson(means[0][None], means[1][None])[0])
    measured = Measurement(
        name="Pearson's r over heads",
        value=r if math.isfinite(r) else None,
        interval=_interval(_pearson(*drawn), n),
        n=n,
        dropped=left_out.total,
    )
    details = []
    for k in top:
        shared = float(_shared(means[0][None], means[1][None], k)[0])
        name = f"heads shared by both top {k}"
        details.append(Measurement(name=name, value=shared, interval=_interval(_shared(*drawn, k), n), n=n))
        details.append(Measurement(name=f"{name}, ranked at random", value=k * k / len(heads), n=n))
    for name, mean in (("run", means[0]), ("file", means[1])):
        share = float((mean >= 0.1).sum())
        details.append(Measurement(name=f"heads with a mean score of 0.1 or more in the {name}", value=share, n=n))
    ends = measured.interval
    verdict: Verdict = "inconclusive"
    if n >= FEWEST_PROMPTS and ends is not None:
        verdict = "supported" if ends.low >= least else "refuted" if ends.high < least else "inconclusive"
    order = np.argsort(-means[1], kind="stable")
    rank = np.argsort(np.argsort(-means[0], kind="stable"))
    of = f"{len(heads)} heads, {n} prompts answered right, {len(theirs)} instances in the file"
    shared_text = ", ".join(
        f"{m.value:.0f} of {k} top heads" for k, m in zip(top, details[: 2 * len(top) : 2], strict=True)
    )
    return Finding(
        **said,
        headline={
            "supported": "The heads score as in the file",
            "refuted": "The heads do not score as in the file",
            "inconclusive": "Whether the heads score as in the file cannot be told",
        }[verdict],
        claim=f"Mean scores agree with r = {measured}; {shared_text} are shared ({of}).",
        verdict=verdict,
        measured=measured,
        control=Measurement(
            name=f"heads shared by both top {top[0]}, ranked at random", value=top[0] ** 2 / len(heads), n=n
        )
        if top
        else None,
        details=tuple(details),
        columns=("layer", "head", "score_in_the_file", "score_in_the_run", "rank_in_the_file", "rank_in_the_run"),
        table=tuple(
            (*heads[i], float(f"{means[1][i]:.4g}"), float(f"{means[0][i]:.4g}"), place + 1, int(rank[i]) + 1)
            for place, i in enumerate(order[: max([*top, 10])].tolist())
        ),
        notes=(
            *left_out.notes(),
            f"Supported: r is at least {least:g} with 95 % certainty; refuted: below it. The margin is this toolkit's "
            "own; between two models of one family the authors' files give 0.96 and 0.89.",
            "Prompts of the run and instances of the file are resampled by themselves; models, prompts and lengths of "
            "the two are seldom the same, which no interval shows.",
        ),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _drawn(scores: Floats, seed: int) -> Floats:
    """Return the heads' means in resamples of the prompts, `[draw head]`."""
    return np.asarray(resamples(len(scores), draws=DRAWS, seed=seed) @ scores / len(scores), np.float64)


def _interval(drawn: Floats, n: int) -> Interval | None:
    kept = drawn[np.isfinite(drawn)]
    if n < 2 or not len(kept):
        return None
    low, high = percentiles(kept)
    return Interval(low=float(low), high=float(high), method="percentile bootstrap over prompts and instances")


def _pearson(first: Floats, second: Floats) -> Floats:
    """Return Pearson's r over the last axis, row by row; NaN where one of them is constant."""
    a, b = (x - x.mean(-1, keepdims=True) for x in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)), np.float64)


def _shared(first: Floats, second: Floats, k: int) -> Floats:
    """Return how many heads stand among the first `k` of both, row by row; of heads that tie the earlier one."""
    best = [np.argsort(-x, axis=-1, kind="stable")[:, :k] for x in (first, second)]
    marked = [np.zeros(x.shape, bool) for x in (first, second)]
    for mask, at in zip(marked, best, strict=True):
        np.put_along_axis(mask, at, True, axis=-1)
    return np.asarray((marked[0] & marked[1]).sum(-1), np.float64)

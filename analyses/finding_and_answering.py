"""Whether a model fails to find the answer in its text, or to answer once it has been found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import JsonValue
from scipy import stats

from probe.analyses.figures.finding_and_answering import by_length_figure
from probe.analyses.measures.gold_looks import GoldLooks, follow_gold
from probe.analyses.measures.three_roles import Asked, asked, flips
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Suggestion, Verdict
from probe.intervals import clopper_pearson, cluster_bootstrap, mcnemar_exact, p_text, paired_difference
from probe.selection import LeftOut, answered, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Does the model fail to find the answer in its text, or to answer once it has it?"
SOURCE = (
    "The whole text beside the gold passage alone and none: Liu et al. 2023, Lost in the Middle, arXiv 2307.03172 "
    "(oracle and closed-book settings); flips, the lower bound of the KL divergence and the words for where it looks: "
    "this toolkit's own"
)
_COLUMNS = (
    "length_tokens",
    "num_prompts",
    "right_whole_text",
    "right_gold_only",
    "right_gold_absent",
    "lost",
    "gained",
    "p_value",
    "p_adjusted",
    "answer_loss_whole_text",
    "answer_loss_gold_only",
    "answer_loss_gold_absent",
    "kl_gold_only_whole_text",
)
_MEASURED = "right from the gold alone, wrong in the whole text"
_CONTROL = "wrong from the gold alone, right in the whole text"


@analysis(question=QUESTION, source=SOURCE, needs={"span_mass": {}}, does_without_attention=True)
def finding_and_answering(
    run: Run | Trace | Iterable[Trace],
    *,
    margin: float = 0.05,
    span: str = "needle_value",
    head_threshold: float = 0.1,
    seed: int = 0,
) -> Finding:
    """Compare the same questions over the whole text, over the gold passage alone, and with it left out.

    A question that flips from right (gold alone, role `gold_only`) to wrong (whole text, role `baseline`) was lost to
    finding; one that is wrong both times to answering. The headline is the share lost so, beside the share that flips
    the other way, which is what chance alone gives both; the test is McNemar's exact one over the pairs, all lengths
    together. Supported: more are lost than gained, p < 0.05, by a model that can answer (right from the gold alone more
    often than with the gold left out, role `needle_absent`, by the same test). Refuted: the loss lies below `margin`
    with 95 % certainty. Without ability nothing is said.

    Answer loss is teacher forced, in nats a token. KL is that of the gold alone against the whole text over two
    events, the right answer and any other, from the answer's probability: by data processing a lower bound of the
    divergence between the two distributions over answers, which would need every token's probability (this toolkit's
    own; probabilities count as no nearer to 1 than float32 tells, 2^-24).

    Where `span_mass` was captured, heads whose mean attention to `span` is above `head_threshold` in right answers (of
    the half that finds, where samples are halved) are followed on the others: in wrong answers they look elsewhere, or
    they look and the answer is wrong all the same.

    What it does not mean: lost to finding does not say why; a longer text also brings other words that distract, and
    the gold alone stands at other positions. Attention does not prove that a head is the cause. Refuted says that the
    whole text costs little, not that the model answers well.
    """
    if not 0 < margin < 1:
        raise UsageError(f"margin {margin}: expected a share above 0 and below 1")
    left_out = LeftOut()
    cases = {role: answered(selected(run, role=role), left_out) for role in ("baseline", "gold_only", "needle_absent")}
    prompts = asked(cases, left_out)
    said: dict[str, Any] = {
        "analysis": "finding_and_answering",
        "question": QUESTION,
        "definition": "Share of questions that are right over the gold passage alone and wrong over the whole text.",
        "source": SOURCE,
        "parameters": {"margin": margin, "span": span, "head_threshold": head_threshold, "seed": seed},
        "evidence": tuple(trace.unit for found in cases.values() for trace, _ in found),
        "columns": _COLUMNS,
        "table": tuple(_rows(prompts)),
    }
    if not prompts:
        reason = (
            "No question was asked both over the whole text and over the gold passage alone"
            if cases["baseline"]
            else "No answer could be judged"
        )
        return Finding(
            **said,
            headline="Whether it fails to find or to answer cannot be told",
            claim=f"{reason}, so whether the model fails to find or to answer cannot be told.",
            verdict="inconclusive",
            measured=Measurement(name=_MEASURED, value=None, n=0, dropped=left_out.total),
            notes=(*left_out.notes(), "A condition of role `gold_only` is needed beside the baseline."),
        )
    looks = follow_gold(cases["baseline"], span, head_threshold, seed)
    return _finding(said, prompts, looks, left_out, margin, seed)


def _finding(
    said: dict[str, Any], prompts: Sequence[Asked], looks: GoldLooks, left_out: LeftOut, margin: float, seed: int
) -> Finding:
    n, (lost, gained) = len(prompts), flips(prompts)
    whole, alone = [each.right for each in prompts], [each.right_alone for each in prompts]
    p_value, interval = mcnemar_exact(alone, whole), paired_difference(alone, whole)
    assert p_value is not None
    assert interval is not None
    able, ability = _able(prompts)
    verdict: Verdict = "inconclusive"
    if able and lost > gained and p_value < 0.05:
        verdict = "supported"
    elif able and interval.high <= margin:
        verdict = "refuted"
    wrong = n - sum(whole)
    numbers = (
        f"{_percent(lost, n)} of questions are right over the gold passage alone and wrong over the whole text, "
        f"{_percent(gained, n)} the other way ({p_text(p_value)}, n = {n})"
    )
    parts = f"of {wrong} wrong answers {lost} would have been right from the gold alone" if wrong else "none is wrong"
    start = {
        "supported": "The model fails to find what it can answer",
        "refuted": f"The whole text costs less than {100 * margin:g} points of what the gold alone gives",
        "inconclusive": "Whether it fails to find or to answer cannot be told"
        if able
        else "The model is not shown to answer even from the gold alone",
    }[verdict]
    return Finding(
        **said,
        headline={
            "supported": f"It fails to find: {lost / n:.0%} of questions are lost in the whole text alone",
            "refuted": "It finds what it can answer",
            "inconclusive": start,
        }[verdict],
        claim=f"{start}: {numbers}; {parts}{looks.clause}.",
        verdict=verdict,
        measured=_share(_MEASURED, lost, n, left_out.total),
        control=_share(_CONTROL, gained, n, 0),
        comparison=Comparison(
            name="lost less gained; exact McNemar test, by sample",
            difference=(lost - gained) / n,
            interval=interval,
            p_value=p_value,
            n=n,
        ),
        details=(*_details(prompts, seed), *looks.details),
        figures=(by_length_figure(prompts),),
        suggests=tuple(_suggestions(looks)),
        notes=(*left_out.notes(), *ability, *_needed(verdict, able, margin, lost, gained), *looks.notes),
    )


def _able(prompts: Sequence[Asked]) -> tuple[bool, list[str]]:
    """Return whether the model answers from the gold alone beyond guessing, and notes on how that was told."""
    three = [each for each in prompts if each.right_absent is not None]
    if not three:
        interval = clopper_pearson(sum(each.right_alone for each in prompts), len(prompts))
        assert interval is not None
        note = "The gold was never left out, so answers from it are not told from guesses: more than 10 % right, with "
        return interval.low > 0.1, [f"{note}95 % certainty, was taken as being able to answer."]
    alone, absent = [each.right_alone for each in three], [bool(each.right_absent) for each in three]
    p = mcnemar_exact(alone, absent)
    assert p is not None
    counts = f"{sum(alone)} of {len(three)} right from the gold alone, {sum(absent)} with it left out, {p_text(p)}"
    return sum(alone) > sum(absent) and p < 0.05, [f"Able to answer means more than guessing: {counts} (McNemar)."]


def _needed(verdict: Verdict, able: bool, margin: float, lost: int, gained: int) -> Iterator[str]:
    yield f"Refuted means: lost less gained lies below {100 * margin:g} points with 95 % certainty."
    if verdict != "inconclusive" or not able:
        return
    yield (
        f"Six flips all one way would be enough to tell (there are {lost} and {gained}); {_without_flips(margin)} "
        f"questions without any flip would be enough to say that less than {100 * margin:g} points are lost."
    )


@cache
def _without_flips(margin: float) -> int:
    """Return the number of pairs that, all right both times, put the interval's high end below the margin."""
    n = 2
    while (ends := paired_difference([True] * n, [True] * n)) is None or ends.high > margin:
        n += 1
    return n


def _share(name: str, count: int, n: int, dropped: int) -> Measurement:
    return Measurement(name=name, value=count / n, interval=clopper_pearson(count, n), n=n, dropped=dropped)


def _percent(count: int, n: int) -> str:
    ends = clopper_pearson(count, n)
    assert ends is not None
    return f"{100 * count / n:.0f} % [{100 * ends.low:.0f}, {100 * ends.high:.0f}]"


def _details(prompts: Sequence[Asked], seed: int) -> Iterator[Measurement]:
    n = len(prompts)
    yield _share("right in the whole text", sum(each.right for each in prompts), n, 0)
    yield _share("right from the gold alone", sum(each.right_alone for each in prompts), n, 0)
    three = [each for each in prompts if each.right_absent is not None]
    if three:
        guesses = sum(bool(each.right_absent) for each in three)
        yield _share("right with the gold left out (guessing)", guesses, len(three), 0)
    differences: Mapping[str, list[tuple[str, float | None]]] = {
        "answer loss of the whole text over the gold alone": [(e.prompt, e.loss_over_alone) for e in prompts],
        "answer loss with the gold left out over the whole text": [(e.prompt, e.loss_absent_over) for e in prompts],
        "KL of the gold alone against the whole text, right answer or not (lower bound)": [
            (e.prompt, e.kl_alone) for e in prompts
        ],
    }
    for name, values in differences.items():
        known = [(prompt, value) for prompt, value in values if value is not None and np.isfinite(value)]
        if known:
            yield Measurement(
                name=name,
                value=float(np.mean([value for _, value in known])),
                unit="nats" if name.startswith("KL") else "nats per token",
                interval=_ends(known, seed),
                n=len(known),
                dropped=n - len(known),
            )


def _ends(known: list[tuple[str, float]], seed: int) -> Interval | None:
    return cluster_bootstrap([value for _, value in known], [prompt for prompt, _ in known], seed=seed)


def _rows(prompts: Sequence[Asked]) -> Iterator[tuple[JsonValue, ...]]:
    lengths = sorted({each.length for each in prompts})
    p_values = []
    for at in lengths:
        here = [each for each in prompts if each.length == at]
        p = mcnemar_exact([each.right_alone for each in here], [each.right for each in here])
        p_values.append(1.0 if p is None else p)
    adjusted = _adjusted(p_values)
    for at, p, q in zip(lengths, p_values, adjusted, strict=True):
        here = [each for each in prompts if each.length == at]
        lost, gained = flips(here)
        absent = [each.right_absent for each in here if each.right_absent is not None]
        yield (
            at,
            len(here),
            sum(each.right for each in here),
            sum(each.right_alone for each in here),
            sum(absent) if absent else None,
            lost,
            gained,
            float(f"{p:.3g}"),
            float(f"{q:.3g}"),
            *(_mean(values) for values in zip(*((e.loss, e.loss_alone, e.loss_absent) for e in here), strict=True)),
            _mean([each.kl_alone for each in here]),
        )


def _adjusted(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted over lengths by Benjamini and Hochberg's procedure."""
    return [float(p) for p in stats.false_discovery_control(p_values)] if p_values else []


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(f"{np.mean(known):.4g}") if known else None


def _suggestions(looks: GoldLooks) -> Iterator[Suggestion]:
    if looks.heads:
        yield Suggestion(
            intervention="ablate_heads",
            fields={"heads": [list(head) for head in looks.heads], "form": "zero", "phase": "both"},
            reason="If the answer is found through these heads, removing them makes right answers wrong.",
        )

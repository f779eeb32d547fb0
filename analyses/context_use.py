"""Whether a model uses what stands far back in its text, and for which words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import JsonValue

from probe.analyses.figures.context import Point, gains_by_kind, losses_along, losses_by_prefix
from probe.analyses.measures.context_losses import KINDS, ContextLosses, Difference, read_losses
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Comparison, Figure, Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS, cluster_bootstrap, p_text, sign_flip
from probe.selection import LeftOut, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Does the model use what stands far back in its text, and for which words?"
SOURCE = (
    "Loss by prefix length, by kind of token and with the distant part disturbed: Sun et al. 2021, Do Long-Range "
    "Language Models Actually Use Long-Range Context?, arXiv 2109.09115; loss over tokens, the margin, the verdict and "
    "the effective context: this toolkit's own"
)
DEFINITION = (
    "Gain: loss of the due tokens after the near part of the prefix alone, less their loss after the longest prefix; "
    "mean over prompts of the mean over a prompt's due tokens."
)
LARGEST_P = 0.01
"""The paired test against the control is held to this, and the gain's interval to 95 %: both must hold."""
SIGNS = 9_999
"""Random signs that the paired test draws."""
MOST_UNKNOWN = 0.2
"""Above this share of unknown tokens the text is not one in the tokenizer's language."""


@analysis(question=QUESTION, source=SOURCE, needs={"loss": {}}, does_without_attention=True)
def context_use(
    run: Run | Trace | Iterable[Trace],
    *,
    margin: float = 0.02,
    control: Literal["shuffled", "replaced"] = "shuffled",
    near: int | None = None,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Measure what the distant part of a prefix takes off the loss of the words that follow, in nats a token.

    The same due tokens (of the workload `plain_text`) follow prefixes of every length. The gain is their loss after the
    longest prefix of at most `near` tokens and a special one (the shortest, where none is so short), less their loss
    after the longest; the control is the gain of an equally long prefix whose distant part was shuffled (or replaced by
    other tokens of the text). Supported: the gain lies above `margin` with 95 % certainty, and the control's loss above
    that of the whole prefix (paired permutation over prompts, p < 0.01), so that it is not length alone that helps;
    refuted: the gain lies below `margin` with 95 % certainty. Intervals are BCa over prompts.

    `near` says which disturbed prompts are read where their undisturbed parts are of several lengths; None, of the
    longest. The effective context is the shortest prefix that no longer one betters by more than the margin; its
    interval are the prefixes that the paired differences' intervals allow. By kind of token: see `KINDS`. A word that
    was seen far back and one that the near part foretells differ in more than that, so that kinds are compared with
    their control and not with each other.

    What it does not mean: a gain says that the distant text makes words more likely, not that the model understands it
    or could answer from it. Refuted speaks of these texts: where little of what follows hangs on what stands far back,
    a model that could use it shows none.
    """
    if not margin > 0:
        raise UsageError(f"margin {margin}: expected nats above 0")
    left_out = LeftOut()
    read = read_losses(selected(run, role=None, half=half), left_out, near)
    said: dict[str, Any] = {
        "analysis": "context_use",
        "question": QUESTION,
        "definition": DEFINITION,
        "source": SOURCE,
        "parameters": {"margin": margin, "control": control, "near": near, "half": half, "seed": seed},
        "evidence": tuple(read.evidence),
        "columns": ("quantity", "distant", "prefix_tokens", "kind", "num_prompts", "num_tokens", "nats", "low", "high"),
    }
    places = _places(read, control)
    missing = _missing(read, control) if places is None or read.unknown > MOST_UNKNOWN else None
    if places is None or missing is not None:
        return Finding(
            **said,
            headline="Whether distant context is used cannot be told",
            claim=f"Whether the model uses what stands far back cannot be told: {missing} (n = {len(read.evidence)}).",
            verdict="inconclusive",
            measured=Measurement(name="gain", value=None, unit="nats a token", n=0, dropped=left_out.total),
            notes=left_out.notes(),
        )
    return _finding(said, read, places, left_out, margin, control, seed)


def _places(read: ContextLosses, control: str) -> tuple[int, int] | None:
    """Return the lengths of the near part alone and of the longest prefix that was also disturbed; None: not read."""
    kept = read.lengths()
    both = [at for at in kept if at in read.lengths(control)]
    if len(kept) < 2 or not both or read.near is None or both[-1] == kept[0]:
        return None
    # A special token stands before the near part.
    short = [at for at in kept if at <= read.near + 1]
    return (short[-1] if short else kept[0]), both[-1]


def _missing(read: ContextLosses, control: str) -> str:
    if not read.evidence:
        return "no stretch of plain text was read; the workload plain_text gives them"
    if read.unknown > MOST_UNKNOWN:
        return (
            f"the tokenizer does not know {read.unknown:.0%} of the text's tokens, so that this is not a text for this "
            "model; give one in its own language"
        )
    if len(read.lengths()) < 2:
        return "prefixes of two lengths are needed, one of them no longer than what is near"
    return f"a condition with `distant: {control}` is needed at a length that leaves something distant"


def _finding(
    said: dict[str, Any],
    read: ContextLosses,
    places: tuple[int, int],
    left_out: LeftOut,
    margin: float,
    control: str,
    seed: int,
) -> Finding:
    short, long = places
    gain = read.difference(("kept", short), ("kept", long), seed=seed)
    disturbed = read.difference(("kept", short), (control, long), seed=seed)
    against = read.difference((control, long), ("kept", long), seed=seed)
    assert gain is not None
    assert disturbed is not None
    assert against is not None
    p_value = sign_flip(against.by_prompt, draws=SIGNS, seed=seed)
    assert p_value is not None
    # Up to 12 pairs all signs are tried; above, the p-value of a difference that none drawn reaches is a bound.
    drawn = SIGNS if against.n > 12 else None
    said_p = p_text(p_value, drawn)
    better = against.value > 0 and p_value < LARGEST_P
    verdict: Verdict = "inconclusive"
    if gain.n >= FEWEST_PROMPTS and gain.low > margin and better:
        verdict = "supported"
    elif gain.n >= FEWEST_PROMPTS and gain.high < margin:
        verdict = "refuted"
    kinds = _kinds(read, short, long, control, seed)
    # Kinds that are named beforehand, so that none is picked for its size.
    chosen = [kinds[kind]["kept"] for kind in ("last seen far", "never seen") if kind in kinds]
    by_kind = ""
    if len(chosen) == 2:
        by_kind = (
            f"; tokens that stood last far back gain {_signed(chosen[0].value)} {_ends(chosen[0])}, those that stood "
            f"nowhere before {_signed(chosen[1].value)} {_ends(chosen[1])}"
        )
    reach, ends = _effective(read, margin, seed)
    tail = (
        f"{long:,} tokens of prefix in place of the nearest {short:,} take {_signed(gain.value)} nats a token "
        f"{_ends(gain)} off the loss; with what is far {control} the gain is {_signed(disturbed.value)} "
        f"{_ends(disturbed)} ({said_p}, n = {gain.n} prompts)"
    )
    far = f"what stands more than {read.near:,} tokens back"
    longest = read.lengths()[-1]
    reaches = f"{'at least ' if reach == longest else ''}{reach:,} tokens"
    claims = {
        "supported": f"The model uses {far}: {tail}{by_kind}. Its context is effective up to {reaches}.",
        "refuted": f"The model does not use {far} by as much as {margin:g} nats a token: {tail}{by_kind}.",
        "inconclusive": f"Whether the model uses {far} by {margin:g} nats a token cannot be told: {tail}{by_kind}.",
    }
    headlines = {
        "supported": f"Distant context takes {gain.value:.2g} nats a token off the loss",
        "refuted": "Distant context is not used",
        "inconclusive": "Whether distant context is used cannot be told",
    }
    curves = {how: [(at, read.loss((how, at), seed)) for at in read.lengths(how)] for how in _disturbances(read)}
    along = _along(read, seed)
    return Finding(
        **said,
        headline=headlines[verdict],
        claim=claims[verdict],
        verdict=verdict,
        measured=_measurement(f"gain of {long:,} tokens over {short:,}", gain, left_out.total),
        control=_measurement(f"gain of {long:,} tokens over {short:,}, what is far {control}", disturbed),
        comparison=Comparison(
            name=f"loss with what is far {control} less loss as it is; paired permutation of signs over prompts",
            difference=against.value,
            interval=against.interval,
            p_value=p_value,
            p_is_bound=said_p.startswith("p ≤"),
            n=against.n,
        ),
        details=(
            Measurement(name="effective context", value=float(reach), unit="tokens", interval=ends, n=gain.n),
            *_losses_of_disturbing(read, long, seed),
            *(_measurement(f"gain, {kind}", gains["kept"]) for kind, gains in kinds.items()),
        ),
        table=tuple(_rows(curves, kinds, long, along)),
        figures=tuple(_figures(read, curves, kinds, control, along)),
        notes=tuple(_notes(left_out, read, gain, better, margin, control, verdict)),
    )


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _ends(each: Difference) -> str:
    return "[no interval for one prompt]" if each.interval is None else f"[{_signed(each.low)}, {_signed(each.high)}]"


def _measurement(name: str, each: Difference, dropped: int = 0) -> Measurement:
    return Measurement(
        name=name, value=each.value, unit="nats a token", interval=each.interval, n=each.n, dropped=dropped
    )


def _disturbances(read: ContextLosses) -> list[str]:
    return [how for how in ("kept", "shuffled", "replaced") if read.lengths(how)]


def _losses_of_disturbing(read: ContextLosses, long: int, seed: int) -> Iterator[Measurement]:
    """Yield what each disturbance of the distant part adds to the loss after the longest prefix."""
    for how in _disturbances(read)[1:]:
        added = read.difference((how, long), ("kept", long), seed=seed)
        if added is not None:
            yield _measurement(f"added loss, what is far {how}", added)


def _effective(read: ContextLosses, margin: float, seed: int) -> tuple[int, Interval]:
    """Return the shortest prefix that none longer betters by more than the margin, and those that intervals allow."""
    lengths = read.lengths()
    falls: dict[int, list[Difference]] = {at: [] for at in lengths}
    for index, at in enumerate(lengths):
        for longer in lengths[index + 1 :]:
            fall = read.difference(("kept", at), ("kept", longer), seed=seed)
            if fall is not None:
                falls[at].append(fall)

    def first(end: str) -> int:
        return next(at for at in lengths if all(getattr(fall, end) <= margin for fall in falls[at]))

    method = "prefixes that the paired differences' intervals allow"
    return first("value"), Interval(low=float(first("low")), high=float(first("high")), method=method)


def _kinds(read: ContextLosses, short: int, long: int, control: str, seed: int) -> dict[str, dict[str, Difference]]:
    """Return the gain of the whole prefix, and of the disturbed one, for each kind of token that occurs."""
    found: dict[str, dict[str, Difference]] = {}
    for kind in KINDS:
        for how in ("kept", control):
            gain = read.difference(("kept", short), (how, long), kind, seed)
            if gain is not None:
                found.setdefault(kind, {})[how] = gain
    return {kind: gains for kind, gains in found.items() if "kept" in gains}


def _along(read: ContextLosses, seed: int) -> list[Point]:
    """Return the loss along the longest prompts, in bins that double, each prompt's mean first."""
    points: list[Point] = []
    shortest = min(map(len, read.along.values()), default=0)
    start = 1
    while start < shortest:
        here = {prompt: losses[start : 2 * start] for prompt, losses in read.along.items()}
        means = {prompt: float(part.mean()) for prompt, part in here.items() if np.isfinite(part).all()}
        ends = cluster_bootstrap([*means.values()], [*means], seed=seed) if means else None
        if means:
            value = float(np.mean([*means.values()]))
            low, high = (value, value) if ends is None else (ends.low, ends.high)
            points.append(Point(float(start), value, low, high, len(means)))
        start *= 2
    return points


def _rows(
    curves: dict[str, list[tuple[int, Difference]]],
    kinds: dict[str, dict[str, Difference]],
    long: int,
    along: list[Point],
) -> Iterator[tuple[JsonValue, ...]]:
    def ends(each: Difference) -> list[JsonValue]:
        shown = (each.value, *((None, None) if each.interval is None else (each.low, each.high)))
        return [None if value is None else round(value, 6) for value in shown]

    for how, curve in curves.items():
        for at, loss in curve:
            yield "loss", how, at, "all", loss.n, loss.num_tokens, *ends(loss)
    for kind, gains in kinds.items():
        for how, gain in gains.items():
            yield "gain", how, long, kind, gain.n, gain.num_tokens, *ends(gain)
    for point in along:
        shown = [round(value, 6) for value in (point.value, point.low, point.high)]
        yield "loss along the prompt", "kept", int(point.at), "all", point.n, None, *shown


def _figures(
    read: ContextLosses,
    curves: dict[str, list[tuple[int, Difference]]],
    kinds: dict[str, dict[str, Difference]],
    control: str,
    along: list[Point],
) -> Iterator[Figure]:
    def point(at: float | str, each: Difference) -> Point:
        low, high = (each.value, each.value) if each.interval is None else (each.low, each.high)
        return Point(at, each.value, low, high, each.n)

    targets = len(next(iter(read.losses["kept", read.lengths()[-1]].values())))
    yield losses_by_prefix(
        {how: [point(float(at), loss) for at, loss in curve] for how, curve in curves.items()}, read.near, targets
    )
    if kinds:
        shown = {how: [point(kind, gains[how]) for kind, gains in kinds.items()] for how in ("kept", control)}
        yield gains_by_kind(shown)
    if along:
        yield losses_along(along)


def _notes(
    left_out: LeftOut,
    read: ContextLosses,
    gain: Difference,
    better: bool,
    margin: float,
    control: str,
    verdict: Verdict,
) -> Iterator[str]:
    yield from left_out.notes()
    if verdict == "inconclusive":
        if gain.n < FEWEST_PROMPTS:
            yield f"At least {FEWEST_PROMPTS} prompts are needed for a verdict; a few dozen tell a gain of 0.05 nats."
        elif gain.low > margin and not better:
            yield (
                f"A prefix of that length whose distant part is {control} is not worse with enough certainty "
                f"(p < {LARGEST_P:g}), so that what helps may be length, or which words occur, and not the text."
            )
        else:
            gap, half = abs(gain.value - margin), (gain.high - gain.low) / 2
            needed = int(np.ceil(gain.n * (half / gap) ** 2)) if gap > 0 else None
            more = "more prompts than can be said" if needed is None else f"about {needed:,} prompts"
            yield f"The gain's interval holds the margin of {margin:g} nats; {more} would tell, if it is as measured."
    yield (
        f"The margin of {margin:g} nats a token is this toolkit's own: {np.expm1(margin):.1%} of the perplexity. "
        "Losses are a token, those of the paper a word."
    )
    if not read.kinds or not any(read.kinds.values()):
        yield "What kind of token each is was not recorded (a private trace does not say)."
    else:
        yield "Kinds: " + "; ".join(f"{kind}, {what}" for kind, what in KINDS.items()) + "."

"""What each head copies while the model answers: the strict criterion of Wu et al. 2024, one trace at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from probe.errors import UsageError
from probe.selection import LeftOut, largest_key, reads_the_text
from probe.withheld import Withheld

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.sample import Sample, Span
    from probe.storage.trace_store import Trace

Counting = Literal["set", "occurrences"]
SuccessRule = Literal["outcome", "recall"]
Floats = NDArray[np.float64]

OFFSETS: Final = (0, 1, 2, 3, 4, -1, -2, -3, -4)
"""How many tokens past what is copied a head may look; 0 is the criterion of the paper."""


@dataclass(frozen=True)
class Reading:
    """What each head did while one answer was produced, `[layer head]` each."""

    prompt: str
    """Name of the sample."""
    score: Floats
    """The copying score: how much of the needle was copied from under the head's largest probability."""
    null: Floats
    """The same with the tokens of other steps, so that looking without copying shows; NaN for a single step."""
    scores: Floats
    """The score of a head that looks so many tokens past what it copies, `[offset layer head]`, by `OFFSETS`."""
    expected: Floats
    """Mean of each of these scores over all rotations of the produced tokens, `[offset layer head]`: what looking at
    these places gives whatever is being produced."""
    variance: Floats
    """Variance of each over the rotations, `[offset layer head]`."""
    as_high: Floats
    """Share of the rotations, what happened among them, that give as high a score, `[offset layer head]`."""
    looks: Floats
    """Share of steps whose largest probability lies in the needle, whatever the token."""
    chance: float
    """That share for a key drawn at random from those that the row sees."""
    exists: NDArray[np.bool_]
    """Whether the layer has this head."""


def read(trace: Trace, outcome: Outcome, span: str, counting: Counting, left_out: LeftOut) -> Reading | None:
    """Return what each head did in one trace, whether or not the answer was right; None, and counted, where unknown."""
    sample = trace.sample
    if isinstance(sample.tokens, Withheld):
        raise UsageError(
            f"retrieval_heads compares token ids, and {sample.name!r} is a private trace, which has none: "
            "capture it without --private"
        )
    if span not in {s.name for s in sample.spans}:
        left_out.add(f"the sample has no span `{span}`")
        return None
    if not reads_the_text(trace):
        # Keys of the decoder's own attention count its own tokens; the sample's spans count the encoder's.
        left_out.add('the text stands in the encoder: its trace to read is trace.part("cross")')
        return None
    place = sample.span(span)
    probability, keys = largest_key(trace)
    steps = min(keys.shape[-1], len(outcome.response_tokens))
    if steps == 0 or len(place) == 0:
        left_out.add("no decoded step was captured")
        return None
    probability, keys = probability[..., :steps], keys[..., :steps]
    exists = np.asarray((keys >= 0).any(axis=-1), np.bool_)
    if not np.isfinite(probability[exists]).all():
        left_out.add("attention was not finite")
        return None
    tokens = np.asarray(sample.tokens)
    response = np.asarray(outcome.response_tokens[:steps])
    rotated = np.stack([_rotated(keys - offset, tokens, response, place, counting) for offset in OFFSETS])
    others = rotated[0, 1:]
    return Reading(
        prompt=sample.name,
        score=rotated[0, 0],
        null=others.mean(axis=0) if len(others) else np.full(rotated.shape[2:], np.nan),
        scores=rotated[:, 0],
        expected=rotated.mean(axis=1),
        variance=rotated.var(axis=1),
        as_high=(rotated >= rotated[:, :1] - 1e-12).mean(axis=1),
        looks=np.asarray(((keys >= place.start) & (keys < place.stop)).mean(axis=-1), np.float64),
        chance=float(np.mean(len(place) / (len(tokens) + np.arange(steps)))),
        exists=exists,
    )


def _rotated(
    keys: NDArray[Any], tokens: NDArray[Any], response: NDArray[Any], place: Span, counting: Counting
) -> Floats:
    """Return the score with the produced tokens as they are, and given to other steps, `[rotation layer head]`."""
    scores = np.zeros((len(response), *keys.shape[:2]))
    # Most heads never look there, and score nothing whatever is produced.
    looking = ((keys >= place.start) & (keys < place.stop)).any(axis=-1)
    for by in range(len(response)):
        rotated = np.roll(response, by)
        scores[by, looking] = _copied(keys[looking], tokens, rotated, place.start, place.stop, counting)
    return scores


def p_values(readings: Sequence[Reading]) -> Floats:
    """Return for each offset and head the probability of copying as much without reading, `[offset layer head]`.

    One-sided, by rotation: were a head to look where it looks whatever is being produced, any rotation of the produced
    tokens over the steps would be as likely as what happened. The sum over prompts is held against its mean and
    variance over the rotations by the normal law; no p is below the chance that every prompt scores as high as it did,
    which matters where few steps tell (this toolkit's own). 1 where no rotation changes anything.
    """
    score, expected = (np.sum([getattr(r, name) for r in readings], axis=0) for name in ("scores", "expected"))
    spread = np.sqrt(np.sum([r.variance for r in readings], axis=0))
    z = np.divide(score - expected, spread, out=np.full_like(score, -np.inf), where=spread > 1e-9)
    least = np.exp(np.sum([np.log(r.as_high) for r in readings], axis=0))
    return np.asarray(np.clip(stats.norm.sf(z), least, 1.0), np.float64)


def group_size(trace: Trace) -> int | None:
    """Return how many query heads share a key-value head; None where the trace does not say."""
    heads, kv_heads = trace.dataset.sizes.get("head"), trace.dataset.sizes.get("kv_head")
    said = set(trace.provenance.get("key_value_heads") or ()) - {0}
    if kv_heads is None and len(said) == 1:
        kv_heads = said.pop()
    return heads // kv_heads if heads and kv_heads and heads % kv_heads == 0 else None


def source_hits(trace: Trace, *, span: str = "needle_value") -> Floats | None:
    """Return for each head the share of steps at which it looks at the right answer's own token, `[layer head]`.

    At step r that is the r-th token of the span, whatever the model produced. None where the trace lacks the span, or
    the span has not as many tokens as the answer.
    """
    sample = trace.sample
    places = [s for s in sample.spans if s.name == span]
    if not places or len(places[0]) != len(sample.answer_tokens) or not sample.answer_tokens:
        return None
    probability, keys = largest_key(trace)
    steps = min(keys.shape[-1], len(places[0]))
    if steps == 0 or not np.isfinite(probability[keys >= 0]).all():
        return None
    wanted = places[0].start + np.arange(steps)
    return np.asarray((keys[..., :steps] == wanted).mean(axis=-1), np.float64)


def success(sample: Sample, outcome: Outcome, rule: SuccessRule) -> tuple[str, bool]:
    """Return the success rule in words, and whether this answer meets it."""
    if rule == "outcome":
        return outcome.success_rule or "the outcome's own", bool(outcome.correct)
    answer = list(sample.answer_tokens)
    found = sum(min(answer.count(t), outcome.response_tokens.count(t)) for t in set(answer))
    return "more than half of the answer's tokens in the response", bool(answer) and found / len(answer) > 0.5


def _copied(
    keys: NDArray[Any], tokens: NDArray[Any], response: NDArray[Any], start: int, stop: int, counting: Counting
) -> Floats:
    """Return the score of keys `[… row]` looked at while `response [row]` was produced."""
    inside = (keys >= start) & (keys < stop)
    copies = inside & (tokens[np.where(inside, keys, start)] == response)
    if counting == "occurrences":
        return np.asarray(copies.sum(axis=-1) / (stop - start), np.float64)
    needle = np.unique(tokens[start:stop])
    per_token = [(copies & (response == token)).any(axis=-1) for token in needle]
    return np.asarray(np.sum(per_token, axis=0) / len(needle), np.float64)

"""What a condition does to attention, where both it and doing nothing were captured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.condition_effect import POINTS, Pair
from probe.analyses.measures.condition_reading import PromptReading
from probe.analyses.measures.copying import read, source_hits
from probe.finding import Measurement
from probe.intervals import cluster_bootstrap
from probe.selection import LeftOut, has_top_keys
from probe.withheld import Withheld

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

NEEDLE: Final = "needle"
"""The span that holds the answer, in every workload that has one."""
VALUE: Final = "needle_value"
"""The span that the answer is copied from."""
_COPIES: Final = 0.1
"""The score above which `retrieval_heads` says that a head copies."""
QUANTITIES: Final = {
    "attention to the passage with the answer, from the rows that answer, mean over heads": "probability",
    "the same of the head that gives it most": "probability",
    "attention to the first four tokens, mean over heads and queries": "probability",
    "entropy of attention, mean over heads and queries": "nats",
}


def attention_changes(pairs: Sequence[Pair], seed: int) -> Iterator[Measurement]:
    """Yield each quantity with the condition less without it, over the prompts that were captured both ways."""
    captured = [(a, b) for a, b in pairs if a.captured and b.captured]
    if not captured:
        return
    with_it = np.array([_of(a) for a, _ in captured])
    without = np.array([_of(b) for _, b in captured])
    for index, (name, unit) in enumerate(QUANTITIES.items()):
        less = with_it[:, index] - without[:, index]
        known = np.isfinite(less)
        if not known.any():
            continue
        prompts = [a.prompt for (a, _), there in zip(captured, known, strict=True) if there]
        before = float(without[known, index].mean())
        yield Measurement(
            name=f"{name} (without: {before:.3g})",
            value=float(less[known].mean()),
            unit=unit,
            interval=cluster_bootstrap(less[known], prompts, seed=seed),
            n=int(known.sum()),
            dropped=int((~known).sum()),
        )
    yield from _looks(captured, seed)


def _looks(captured: Sequence[Pair], seed: int) -> Iterator[Measurement]:
    """Yield by length how often the heads that copy look at the right answer's token, with the condition less without.

    They are the heads that copy where nothing was done and the answer is right (`retrieval_heads`' score above its
    threshold over those of these prompts): chosen without the condition, they can but lose by the choice.
    """
    known = [(a, b) for a, b in captured if all(_tells(t) for t in (*a.traces, *b.traces))]
    right = [t for _, b in known for t in b.traces if t.outcome is not None and t.outcome.correct]
    readings = [read(t, t.outcome, VALUE, "set", LeftOut()) for t in right if t.outcome is not None]
    scores = [reading.score for reading in readings if reading is not None]
    if not scores:
        return
    heads = np.argwhere(np.mean(scores, axis=0) > _COPIES)
    if not len(heads):
        return
    for at in sorted({b.length for _, b in known}):
        pairs = [(_hits(a, heads), _hits(b, heads), b.prompt) for a, b in known if b.length == at]
        less = np.array([a - b for a, b, _ in pairs])
        before = float(np.mean([b for _, b, _ in pairs]))
        yield Measurement(
            name=f"steps at which the {len(heads)} heads that copy look at the right token, {at} tokens "
            f"(without: {before:.3g} %)",
            value=float(less.mean()),
            unit="points",
            interval=cluster_bootstrap(less, [prompt for _, _, prompt in pairs], bounds=POINTS, seed=seed),
            n=len(pairs),
        )


def _tells(trace: Trace) -> bool:
    """Return whether a trace says which token each head looks at most, and whether that is the right one."""
    there = has_top_keys(trace) and not isinstance(trace.sample.tokens, Withheld)
    return there and source_hits(trace, span=VALUE) is not None


def _hits(prompt: PromptReading, heads: NDArray[np.intp]) -> float:
    hits = [source_hits(trace, span=VALUE) for trace in prompt.traces]
    return 100 * float(np.mean([each[heads[:, 0], heads[:, 1]] for each in hits if each is not None]))


def _of(prompt: PromptReading) -> list[float]:
    """Return each quantity of a prompt, mean over the condition's draws; NaN where it was not captured."""
    return [float(np.mean(values)) for values in zip(*(_of_trace(t) for t in prompt.traces), strict=True)]


def _of_trace(trace: Trace) -> list[float]:
    to_needle = most = np.nan
    if "span_mass" in trace:
        mass = trace["span_mass"]
        if NEEDLE in mass["span"].to_numpy().tolist():
            by_head = mass.sel(span=NEEDLE).mean("row")
            to_needle, most = float(by_head.mean()), float(by_head.max())
    return [to_needle, most, *(float(trace[n].mean()) if n in trace else np.nan for n in ("sink_mass", "entropy"))]

"""How often the heads that copy look at the right token, by length and by whether the answer is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probe.analyses.measures.copying import read, source_hits
from probe.finding import Interval, Measurement
from probe.intervals import by_cluster, cluster_bootstrap
from probe.selection import LeftOut, fact, has_top_keys, length
from probe.withheld import Withheld

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.storage.trace_store import Trace


@dataclass(frozen=True)
class SourceHits:
    """How often the retrieval heads look at the right token: where samples are halved, on the half that tests."""

    heads: tuple[tuple[int, int], ...]
    by_length: Mapping[int, tuple[float, float, float]]
    when_right: Measurement | None
    when_wrong: Measurement | None


def follow_heads(cases: Sequence[tuple[Trace, Outcome]], head_threshold: float, seed: int) -> SourceHits | None:
    """Return where the heads look that copy where answers are right; None where it was not captured, or none copies."""
    # Of a private trace nobody can say which token was copied.
    captured = [(t, o) for t, o in cases if has_top_keys(t) and not isinstance(t.sample.tokens, Withheld)]
    right = [(trace, outcome) for trace, outcome in captured if outcome.correct]
    # Where samples are halved, heads are chosen on the half that finds.
    chosen = [(t, o) for t, o in right if fact(t, "half") == "find"]
    right = chosen or right
    readings = [read(trace, outcome, "needle_value", "set", LeftOut()) for trace, outcome in right]
    scores = [reading.score for reading in readings if reading is not None]
    if not scores:
        return None
    heads = np.argwhere(np.mean(scores, axis=0) > head_threshold)
    # And followed on the other, where a head that was lucky on the first has no luck left.
    tested = [(trace, outcome) for trace, outcome in captured if fact(trace, "half") == "test"]
    followed = tested if chosen and tested else captured
    looked = [(trace, outcome, source_hits(trace)) for trace, outcome in followed]
    known = [(t, o, float(hits[heads[:, 0], heads[:, 1]].mean())) for t, o, hits in looked if hits is not None]
    if not len(heads) or not known:
        return None

    def mean(cases: list[tuple[Trace, Outcome, float]]) -> tuple[float, Interval | None]:
        values, prompts = [hit for _, _, hit in cases], [trace.sample.name for trace, _, _ in cases]
        ends = cluster_bootstrap(values, prompts, bounds=(0.0, 1.0), seed=seed)
        return float(by_cluster(values, prompts).mean()), ends

    by_length = {}
    for at in sorted({length(trace) for trace, _, _ in known}):
        value, ends = mean([case for case in known if length(case[0]) == at])
        by_length[at] = (value, ends.low if ends else float("nan"), ends.high if ends else float("nan"))

    # Lengths at which both kinds of answer occur, or length alone would tell them apart.
    mixed = {at for at in by_length if len({bool(o.correct) for t, o, _ in known if length(t) == at}) == 2}

    def when(correct: bool) -> Measurement | None:
        cases = [case for case in known if bool(case[1].correct) == correct and length(case[0]) in mixed]
        if not cases:
            return None
        value, ends = mean(cases)
        name = f"steps at which those heads look at the right token, answer {'right' if correct else 'wrong'}"
        interval = None
        if ends is not None:
            interval = ends.model_copy(update={"low": 100 * ends.low, "high": 100 * ends.high})
        return Measurement(name=name, value=100 * value, unit="%", interval=interval, n=len(cases))

    found = tuple((int(layer), int(head)) for layer, head in heads)
    return SourceHits(found, by_length, when(True), when(False))

from __future__ import annotations

import numpy as np
import pytest

from probe.analyses.sink_place import sink_place
from probe.errors import UsageError
from tests.effects.sink_place import HEADS, HORIZON, MOVED_TO, NUM_PROMPTS, planted, sunk, traces


def uniform(place: int) -> float:
    """Importance of a key under uniform causal attention: the mean of 1 / (i + 1) over the queries from it on."""
    return float(np.mean([1 / (query + 1) for query in range(place, HORIZON)]))


def importance(attention: np.ndarray, place: int) -> np.ndarray:
    return attention[..., place:, place].mean(-1)


@pytest.mark.parametrize("stays", [0.2, 0.7, 1.0])
def test_the_share_that_stays_is_computed_by_its_definition(stays):
    generator = np.random.default_rng(0)
    where = {"kept": {0: 0.6}, "moved": {0: 0.6 * stays, MOVED_TO: 0.6 * (1 - stays)}}
    attentions = {how: [sunk(generator, places) for _ in range(NUM_PROMPTS)] for how, places in where.items()}
    finding = sink_place([t for how, each in attentions.items() for t in traces(how, each, generator)])
    # Texts in the order of their names; every other one, from the second on, is measured.
    order = sorted(range(NUM_PROMPTS), key=lambda i: f"needle-64-0.50-s{i}")[1::2]

    def excess(how: str, place: int) -> float:
        return float(
            np.mean([[importance(attentions[how][i], place)[head] for head in HEADS] for i in order]) - uniform(place)
        )

    assert finding.measured.value == pytest.approx(excess("moved", 0) / excess("kept", 0))
    goes = next(detail for detail in finding.details if "goes with" in detail.name)
    assert goes.value == pytest.approx(excess("moved", MOVED_TO) / excess("kept", 0))
    assert finding.verdict == ("supported" if stays > 0.5 else "refuted")
    assert finding.measured.n == NUM_PROMPTS // 2


def test_a_sink_that_goes_along_is_said_to():
    finding = sink_place(planted(0.0, 1))
    assert finding.verdict == "refuted"
    assert finding.headline == "The sink goes with the token"


def test_where_there_is_no_sink_nothing_can_be_moved():
    generator = np.random.default_rng(0)
    made = [t for how in ("kept", "moved") for t in traces(how, [sunk(generator, {}) for _ in range(20)], generator)]
    finding = sink_place(made)
    assert finding.verdict == "inconclusive"
    assert finding.measured.value is None
    assert "No sink stands at the first token" in finding.claim


def test_texts_read_in_one_form_alone_are_counted():
    whole = planted(1.0, 0)
    alone = [t for t in whole if t.condition != "moved" or t.sample.name.endswith(("s1", "s2"))]
    finding = sink_place(alone)
    assert finding.verdict == "inconclusive"
    assert finding.measured.dropped == NUM_PROMPTS - 2
    assert "first_token: moved" in finding.notes[-1]


def test_a_token_moved_beyond_half_the_horizon_is_refused():
    with pytest.raises(UsageError, match=r"moved to 16: importance is known up to position 7"):
        sink_place(shortened(planted(1.0, 0)), horizon=16)


def shortened(made):
    for trace in made:
        trace.dataset = trace.dataset.rename(received_mass_horizon_64="received_mass_horizon_16")
    return made

from __future__ import annotations

import numpy as np
import pytest

from probe.analyses.massive_activations import massive_activations
from probe.errors import MissingStatistic, UsageError
from probe.hooks.intervention import Intervention
from probe.hooks.set_activations import set_activations
from tests.analyses.conftest import make_sample, make_trace
from tests.effects.massive_activations import NUM_TOKENS, planted, stream, traces


def states(size: float, place: int = 0, num_prompts: int = 8) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    made = [stream(generator) for _ in range(num_prompts)]
    for state in made:
        state[2, place, 5] = size
    return made


@pytest.mark.parametrize("least", [50.0, 100.0, 500.0])
@pytest.mark.parametrize("times", [100.0, 1000.0, 4000.0])
def test_the_criterion_is_both_bounds_together(least, times):
    made = [state for size in (40.0, 200.0, 1000.0) for state in states(size, num_prompts=3)]
    finding = massive_activations(traces(made), least=least, times_median=times)
    # By hand, from the states themselves.
    hit = [
        bool(((np.abs(s).max(-1) > least) & (np.abs(s).max(-1) >= times * np.median(np.abs(s), -1))).any())
        for s in made
    ]
    assert finding.measured.value == pytest.approx(np.mean(hit))
    assert finding.measured.n == 9


def test_layer_token_and_channel_are_named():
    finding = massive_activations(traces(states(400.0, place=11)))
    assert finding.verdict == "supported"
    row = finding.records()[2]
    assert (row["its_token"], row["its_channel"], row["largest_value"]) == (11, 5, 400.0)
    assert finding.control.value == 1
    assert "after layer 2, at the first token in 0 of 8 texts and in channel 5 in 8" in finding.claim


def test_one_on_the_first_token_is_none_elsewhere():
    finding = massive_activations(planted(1000.0, 3))
    assert (finding.measured.value, finding.control.value) == (1, 0)


def test_few_prompts_decide_nothing_and_say_how_many_would():
    finding = massive_activations(traces(states(400.0, num_prompts=4)))
    assert finding.verdict == "inconclusive"
    assert "6 that agree" in finding.notes[-1]


def test_what_cannot_be_read_is_counted_or_refused():
    good = traces(states(400.0))
    pooled = make_trace(
        make_sample(50, length=NUM_TOKENS),
        arrays={
            name: (("layer", "token_block"), np.ones((4, 2)))
            for name in ("residual_max", "residual_max_channel", "residual_median")
        },
    )
    infinite = traces(states(float("inf"), num_prompts=9))[8]
    finding = massive_activations([*good, pooled, infinite])
    assert finding.measured.dropped == 2
    assert massive_activations([pooled]).measured.value is None
    with pytest.raises((MissingStatistic, KeyError)):
        massive_activations([make_trace(make_sample(0))])
    with pytest.raises(UsageError, match="times_median 1"):
        massive_activations(good, times_median=1.0)


def test_it_suggests_to_set_what_it_found_to_zero_and_nothing_where_it_found_none():
    (suggestion,) = massive_activations(planted(1000.0, 3)).suggests
    intervention = Intervention.from_json({suggestion.intervention: suggestion.fields})
    assert intervention == set_activations(1, [7], "zero", "massive", 100.0, 1000.0)
    assert massive_activations(planted(0.0, 3)).suggests == ()

"""The choice of a setting: by what, among what, on which half, and what it suggests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probe.analyses.choose_condition import choose_condition
from probe.errors import UsageError
from tests.analyses.conftest import make_sample
from tests.analyses.test_compare_conditions import drawn, nothing, read

HALVED = [make_sample(i, half=("find", "test")[i % 2]) for i in range(40)]


def setting(name: str, right: Any, losses: Any = None, **options: Any) -> list[Any]:
    return read(name, right, losses, intervention={"scale": {"factor": name}}, role="other", samples=HALVED, **options)


def chosen(finding: Any) -> str:
    (suggestion,) = finding.suggests
    return str(suggestion.fields["factor"])


def test_the_most_right_answers_on_the_half_that_finds_are_chosen() -> None:
    # Good on the find half alone, and good on the test half alone.
    here, there = [i % 2 == 0 for i in range(40)], [i % 2 == 1 for i in range(40)]
    finding = choose_condition([*setting("here", here), *setting("there", there)])
    assert chosen(finding) == "here"
    assert finding.verdict == "supported"
    assert (finding.measured.value, finding.measured.n) == (100, 20)
    assert {unit.rsplit("-s", 1)[1] for unit in finding.evidence} == {str(i) for i in range(0, 40, 2)}
    assert "On the find half of the samples here is best of 2 (here 100 %, there 0 %)" in finding.claim
    assert chosen(choose_condition([*setting("here", here), *setting("there", there)], half="test")) == "there"


def test_answer_loss_breaks_ties_and_the_name_breaks_the_rest() -> None:
    right = [True] * 40
    traces = [*setting("a", right, [2.0] * 40), *setting("b", right, [1.0] * 40), *setting("c", right, [1.0] * 40)]
    assert chosen(choose_condition(traces)) == "b"
    assert chosen(choose_condition(traces[::-1])) == "b"
    assert choose_condition(traces).verdict != "supported"


def test_it_can_be_chosen_by_answer_loss_and_right_answers_break_those_ties() -> None:
    traces = [
        *setting("right", [True] * 40, [2.0] * 40),
        *setting("low", [False] * 40, [1.0] * 40),
        *setting("low-and-right", [True] * 40, [1.0] * 40),
    ]
    finding = choose_condition(traces, by="answer_loss")
    assert chosen(finding) == "low-and-right"
    assert (finding.measured.value, finding.measured.unit) == (1.0, "nats per token")


def test_candidates_can_be_named_so_that_two_fields_are_tuned_apart() -> None:
    traces = [
        *setting("a1", drawn(0.2, 40, 0)), *setting("a2", drawn(0.5, 40, 1)),
        *setting("b1", drawn(0.95, 40, 2)), *setting("b2", drawn(0.7, 40, 3)),
    ]  # fmt: skip
    assert chosen(choose_condition(traces, among=["a1", "a2"])) == "a2"
    assert chosen(choose_condition(traces, among=["b1", "b2"])) == "b1"
    for among, what in ((["a1", "a1"], "stands twice"), ([], "no condition is named")):
        with pytest.raises(UsageError, match=f"among: .*{what}"):
            choose_condition(traces, among=among)
    # A stage may not have been played: what is missing is said, and stops no run.
    finding = choose_condition(traces, among=["a1", "a9"])
    assert chosen(finding) == "a1"
    assert any("candidate 'a9', of which nothing was read" in note for note in finding.notes)


def test_doing_nothing_and_controls_are_no_candidates_and_nothing_is_told_beside() -> None:
    traces = [
        *nothing([True] * 40, samples=HALVED),
        *read("others", [True] * 40, intervention={"scale": {}}, role="control", samples=HALVED),
        *setting("a", [False] * 40),
    ]
    finding = choose_condition(traces)
    assert chosen(finding) == "a"
    assert finding.verdict == "inconclusive"
    assert (finding.control.value, finding.control.n) == (100, 20)


def test_only_prompts_that_all_candidates_read_count() -> None:
    traces = [*setting("a", [True] * 40), *setting("b", [True] * 40)[:10]]
    finding = choose_condition(traces)
    assert finding.measured.n == 5
    assert finding.measured.dropped == 15


def test_settings_that_are_alike_are_said_to_be() -> None:
    finding = choose_condition([*setting("a", [True] * 40), *setting("b", [True] * 40)], half="both", margin=20.0)
    assert finding.verdict == "refuted"
    assert any("none is left" in note for note in finding.notes)


def test_the_lead_is_tested_by_shuffling_candidates_within_prompts() -> None:
    generator = np.random.default_rng(1)
    table = generator.random((3, 40)) < np.array([[0.5], [0.5], [0.9]])
    traces = [each for i, right in enumerate(table) for each in setting(f"c{i}", [bool(x) for x in right])]
    finding = choose_condition(traces, half="both")
    lead = table.mean(axis=1).max() - table.mean()
    shuffled = []
    for _ in range(4000):
        moved = np.array([column[generator.permutation(3)] for column in table.T]).T
        shuffled.append(moved.mean(axis=1).max() - moved.mean())
    expected = float(np.mean(np.array(shuffled) >= lead - 1e-9))
    assert finding.comparison.difference == pytest.approx(100 * lead)
    assert finding.comparison.p_value == pytest.approx(expected, abs=0.01)


def test_with_nothing_to_choose_nothing_is_suggested() -> None:
    finding = choose_condition(nothing([True] * 40, samples=HALVED))
    assert not finding.suggests
    assert finding.measured.value is None

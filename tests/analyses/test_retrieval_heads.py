from __future__ import annotations

import json
from itertools import product

import numpy as np
import plotly.graph_objects as go
import pytest
from scipy import stats

from probe.analyses.measures.copying import p_values, read, source_hits
from probe.analyses.retrieval_heads import retrieval_heads
from probe.errors import UsageError
from probe.finding import Finding
from probe.selection import LeftOut
from tests.analyses.conftest import make_keys, make_sample, make_trace


def copying_scores(trace, outcome, *, span="needle_value", counting="set"):
    return read(trace, outcome, span, counting, LeftOut()).score


def by_the_paper(sample, response, keys, layer, head, span="needle_value"):
    """Wu et al. 2024, section 2: |g_h ∩ k| / |k|, read again without this toolkit's arrays."""
    place = sample.span(span)
    needle = set(sample.tokens[place.start : place.stop])
    copied = set()
    for step, token in enumerate(response):
        key = int(keys[layer, head, step])
        if token in needle and place.start <= key < place.stop and sample.tokens[key] == token:
            copied.add(token)
    return len(copied & needle) / len(needle)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("span", ["needle", "needle_value"])
def test_score_is_the_papers_definition_head_by_head(sample, trace, span, seed):
    generator = np.random.default_rng(seed)
    made = sample(seed)
    place = made.span("needle")
    tokens = list(made.tokens)
    tokens[place.start : place.stop] = generator.integers(0, 5, 8).tolist()
    made = type(made)(**{**made.__dict__, "tokens": tuple(tokens)})
    response = tuple(generator.integers(0, 5, 4).tolist())
    keys = generator.integers(place.start - 2, place.stop + 2, (3, 4, 4))
    made_trace = trace(made, keys=keys, response=response)
    score = copying_scores(made_trace, made_trace.outcome, span=span)
    expected = [[by_the_paper(made, response, keys, layer, head, span) for head in range(4)] for layer in range(3)]
    np.testing.assert_allclose(score, expected)


def test_occurrences_are_counted_as_the_authors_code_does_and_may_exceed_one(sample, trace):
    made = sample()
    place = made.span("needle_value")
    tokens = list(made.tokens)
    tokens[place.start : place.stop] = [7, 8, 9, 10]
    made = type(made)(**{**made.__dict__, "tokens": tuple(tokens)})
    keys = np.full((1, 1, 6), place.start)
    made_trace = trace(made, keys=keys, response=(7,) * 6)
    assert copying_scores(made_trace, made_trace.outcome, counting="occurrences") == pytest.approx(6 / 4)
    assert copying_scores(made_trace, made_trace.outcome, counting="set") == pytest.approx(1 / 4)


def planted(sample, trace, looking, copying, num=20, **fields):
    samples = [sample(i, depth=(0.1, 0.5, 0.9)[i % 3]) for i in range(num)]
    return [trace(s, keys=looking(s, copying, seed=i), **fields) for i, s in enumerate(samples)]


def test_planted_heads_are_found_and_suggested_for_ablation(sample, trace, looking):
    finding = retrieval_heads(planted(sample, trace, looking, {(2, 1): 1.0, (1, 3): 0.6}))
    assert finding.verdict == "supported"
    assert finding.measured.value == pytest.approx(100 * 2 / 12)
    assert finding.measured.n == 20
    assert finding.suggests[0].intervention == "ablate_heads"
    assert finding.suggests[0].fields == {"heads": [[2, 1], [1, 3]], "form": "zero", "phase": "both"}
    assert finding.records()[0]["score"] == 1.0
    assert finding.control is not None
    assert finding.control.value == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_heads_that_look_anywhere_are_not_retrieval_heads(sample, trace, seed):
    generator = np.random.default_rng(seed)
    traces = [trace(sample(i), keys=generator.integers(0, 64, (3, 4, 4))) for i in range(60)]
    finding = retrieval_heads(traces)
    assert finding.measured.value == 0.0
    assert finding.verdict == "refuted"
    assert finding.suggests == ()


def test_a_head_that_stares_at_the_needle_without_reading_is_not_taken_for_certain(sample, trace):
    # It stands on the first value token all the time: one of four steps matches by itself.
    traces = []
    for i in range(40):
        made = sample(i)
        keys = np.zeros((3, 4, 4), int)
        keys[1, 2] = made.span("needle_value").start
        traces.append(trace(made, keys=keys))
    finding = retrieval_heads(traces)
    assert finding.measured.value == pytest.approx(100 / 12)
    assert finding.control is not None
    assert finding.control.value == pytest.approx(100 / 12)
    assert finding.verdict == "inconclusive"


def test_only_successful_retrievals_count_and_both_numbers_are_reported(sample, trace, looking):
    good = planted(sample, trace, looking, {(2, 1): 1.0}, num=12)
    bad = [trace(sample(100 + i), correct=False, keys=np.zeros((3, 4, 4), int)) for i in range(5)]
    finding = retrieval_heads([*bad, *good])
    assert (finding.measured.n, finding.measured.dropped) == (12, 5)
    assert "exact" in finding.definition
    assert any("5 × the answer was wrong" in note for note in finding.notes)


def test_without_a_success_nothing_is_measured(sample, trace):
    finding = retrieval_heads([trace(sample(i), correct=False, keys=np.zeros((3, 4, 4), int)) for i in range(5)])
    assert finding.measured.value is None
    assert finding.verdict == "inconclusive"
    assert finding.measured.dropped == 5


def test_one_prompt_gives_no_interval_and_no_verdict(sample, trace, looking):
    finding = retrieval_heads(planted(sample, trace, looking, {(2, 1): 1.0}, num=1)[0])
    assert finding.measured.interval is None
    assert finding.verdict == "inconclusive"


def test_halves_keep_finding_and_testing_apart(sample, trace, looking):
    traces = []
    for i in range(12):
        made = sample(i, half=("find", "test")[i % 2])
        traces.append(trace(made, keys=looking(made, {(2, i % 2): 1.0}, seed=i)))
    assert retrieval_heads(traces, half="find").suggests[0].fields["heads"] == [[2, 0]]
    assert retrieval_heads(traces, half="test").suggests[0].fields["heads"] == [[2, 1]]


def test_nan_attention_never_enters_the_headline(sample, trace, looking):
    traces = planted(sample, trace, looking, {(2, 1): 1.0}, num=10)
    traces[3].dataset["top_keys_k_1_probability"][:] = np.nan
    finding = retrieval_heads(traces)
    assert (finding.measured.n, finding.measured.dropped) == (9, 1)
    assert finding.measured.value == pytest.approx(100 / 12)


@pytest.mark.parametrize("shift", [1, 3, -2])
def test_a_head_that_looks_beside_the_source_is_named_with_how_far(sample, trace, looking, shift):
    traces = []
    for i in range(10):
        made = sample(i)
        traces.append(trace(made, keys=looking(made, {(2, 1): 1.0}, seed=i) + shift))
    finding = retrieval_heads(traces)
    shifted = next(m for m in finding.details if "looking beside the source" in m.name)
    assert shifted.value == pytest.approx(100 / 12)
    (row,) = finding.records()
    assert (row["layer"], row["head"], row["looks_past"], row["score_there"]) == (2, 1, shift, 1.0)
    where = f"(2, 1) ({abs(shift)} {'past' if shift > 0 else 'before'} it)"
    assert any(where in note for note in finding.notes)
    assert finding.suggests == ()
    assert finding.verdict != "supported"


def test_looking_into_the_answer_without_reading_is_not_copying(sample, trace, looking):
    generator = np.random.default_rng(0)
    traces = []
    for i in range(20):
        made = sample(i)
        keys = looking(made, {(2, 1): 1.0}, seed=i)
        value = made.span("needle_value")
        keys[0, 3] = generator.integers(value.start, value.stop, keys.shape[-1])
        traces.append(trace(made, keys=keys))
    finding = retrieval_heads(traces)
    rows = {(row["layer"], row["head"]): row for row in finding.records()}
    # Copied by chance: one step in four for each of four tokens. A rotation test cannot tell it from that.
    assert rows[0, 3]["score"] > 0.1
    assert rows[0, 3]["q_value"] > 0.05 > rows[2, 1]["q_value"]
    assert any("not certain to read" in note and "(0, 3)" in note for note in finding.notes)


def test_the_rotation_test_is_the_exact_distribution_of_all_rotations():
    # Three prompts of four steps: 4 ** 3 ways to rotate, all of them written out.
    samples = [make_sample(i) for i in range(3)]
    keys = [make_keys(s, {(2, 1): 0.7}, seed=i) for i, s in enumerate(samples)]
    readings = [
        read(make_trace(s, keys=k), make_trace(s, keys=k).outcome, "needle_value", "set", LeftOut())
        for s, k in zip(samples, keys, strict=True)
    ]

    def score(sample, looked, by):
        value = sample.span("needle_value")
        said = np.roll(np.asarray(sample.answer_tokens), by)
        seen = np.asarray(sample.tokens)[looked]
        inside = (looked >= value.start) & (looked < value.stop)
        return len({int(w) for w, s, i in zip(said, seen, inside, strict=True) if i and w == s}) / len(value)

    each = np.array([[score(s, k[2, 1], by) for by in range(4)] for s, k in zip(samples, keys, strict=True)])
    z = (each[:, 0].sum() - each.mean(1).sum()) / np.sqrt(each.var(1).sum())
    as_high = np.prod((each >= each[:, :1]).mean(1))
    p = p_values(readings)[0, 2, 1]
    assert p == pytest.approx(max(stats.norm.sf(z), as_high))
    ways = [sum(row[by] for row, by in zip(each, way, strict=True)) for way in product(range(4), repeat=3)]
    exact = np.mean(np.array(ways) >= each[:, 0].sum() - 1e-12)
    assert as_high <= exact
    assert p == pytest.approx(exact, abs=0.03)


def test_scores_that_come_from_the_heads_agree_between_halves_and_noise_does_not(sample, trace, looking):
    copying = {(2, 1): 1.0, (1, 0): 0.6, (0, 2): 0.3}
    finding = retrieval_heads(planted(sample, trace, looking, copying))
    of = {m.name: m.value for m in finding.details}
    assert of["split-half correlation of the heads' scores"] > 0.9
    r = of["split-half correlation of the heads' scores"]
    assert of["the same for all prompts, by Spearman and Brown"] == pytest.approx(2 * r / (1 + r))
    assert of["heads that copy something in some prompts alone"] > 0


def test_order_of_traces_changes_nothing_and_json_round_trips(sample, trace, looking):
    traces = planted(sample, trace, looking, {(2, 1): 0.7, (0, 0): 0.3})
    finding = retrieval_heads(traces)
    assert retrieval_heads(traces[::-1]) == finding
    assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding


def test_figures_are_valid_plotly(sample, trace, looking):
    for figure in retrieval_heads(planted(sample, trace, looking, {(2, 1): 1.0})).figures:
        assert go.Figure(figure.plotly).to_dict()["data"]


def test_source_hits_look_for_the_right_answer_whatever_was_said(sample, trace, looking):
    made = sample()
    made_trace = trace(made, correct=False, keys=looking(made, {(2, 1): 1.0}))
    hits = source_hits(made_trace)
    assert hits is not None
    assert hits[2, 1] == 1.0
    assert hits.sum() == 1.0


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.5}, {"denominator": "token"}, {"counting": "all"}, {"success_rule": "any"}]
)
def test_a_bad_parameter_is_refused_by_name(sample, trace, looking, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        retrieval_heads([], **wrong)

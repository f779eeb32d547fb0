from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
from scipy import stats

from probe.analyses.document_attention import document_attention
from probe.analyses.measures.attention_by_document import Documents, rank_correlation, rank_of_gold
from probe.errors import UsageError
from tests.effects.document_attention import (
    NUM_DOCUMENTS,
    PLACES,
    biased,
    document_sample,
    document_trace,
    planted,
)


def details(finding):
    return {each.name: each for each in finding.details}


def dummies(profile, num=8, noise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    return [
        document_trace(
            document_sample(index, 4, given="all_dummies"),
            np.asarray(profile) * np.exp(generator.normal(0, noise, len(profile))),
            role="other",
            correct=None,
        )
        for index in range(num)
    ]


def test_equal_documents_give_the_bias_alone():
    profile = 0.01 * (1 + 2 * (2 * PLACES - 1) ** 2)
    finding = document_attention(dummies(profile))
    relative = profile / profile.mean()
    assert finding.verdict == "supported"
    assert finding.measured.value == pytest.approx((relative[0] + relative[-1]) / 2 - relative[1:-1].mean())
    assert details(finding)["primacy, equal dummy documents"].value == pytest.approx(
        relative[0] - relative[1:-1].mean()
    )
    row = finding.records()[0]
    assert row["num_dummies"] == 8
    assert row["dummy_attention"] == pytest.approx(0.03)
    assert abs(finding.control.value) < 0.05


def test_it_suggests_to_take_off_what_dummies_got():
    profile = 0.01 * (1 + 2 * (2 * PLACES - 1) ** 2)
    (suggestion,) = document_attention(dummies(profile), sink_tokens=1).suggests
    assert suggestion.intervention == "found_in_the_middle"
    assert suggestion.fields == {"dummy_attention": pytest.approx(profile.tolist(), rel=1e-5), "sink_tokens": 1}
    # Not where there is no such bias, nor where dummies were read at two lengths, of some heads, or beside a sink.
    assert not document_attention(dummies(np.full(10, 0.01))).suggests
    longer = [
        document_trace(document_sample(i, 4, given="all_dummies", length=90), profile, role="other", correct=None)
        for i in range(8)
    ]
    assert not document_attention([*dummies(profile), *longer]).suggests
    assert not document_attention(dummies(profile), heads=[[0, 0]]).suggests
    assert not document_attention(dummies(profile), sink_tokens=12).suggests


@pytest.mark.parametrize("profile", [1 + PLACES, 2 - PLACES, np.ones(10), 2 - (2 * PLACES - 1) ** 2])
def test_a_slope_or_a_hump_or_nothing_is_refuted(profile):
    finding = document_attention(dummies(0.01 * profile, noise=0.01))
    assert finding.verdict == "refuted"
    assert "does not favour both ends" in finding.claim


def test_few_prompts_say_how_many_would_do():
    finding = document_attention(dummies(np.ones(10), num=6, noise=0.6, seed=2))
    assert finding.verdict == "inconclusive"
    assert any("prompts would do" in note for note in finding.notes)
    assert document_attention(dummies(np.ones(10), num=4)).measured.value is None


def test_dividing_takes_off_what_multiplies_and_subtracting_what_adds():
    bias = 1 + 5 * (2 * PLACES - 1) ** 2
    relevance = np.ones(NUM_DOCUMENTS)
    traces = []
    for index in range(12):
        gold = (0, 4, 5, 9)[index % 4]
        said = relevance.copy()
        said[gold] = 2
        traces.append(document_trace(document_sample(index, gold), 0.001 * said * bias, role="baseline"))
        traces.append(
            document_trace(document_sample(index, gold, given="all_dummies"), 0.001 * bias, role="other", correct=None)
        )
    found = details(document_attention(traces))
    # In the middle the gold's 2 × 1.06 lies below the ends' 6; less the bias its 1.06 is the only one above 0.
    assert found["Recall@1 of the gold, raw, gold in the middle"].value == 0
    assert found["Recall@1 of the gold, divided, gold in the middle"].value == 1
    assert found["Recall@1 of the gold, subtracted, gold in the middle"].value == 1
    assert found["Recall@1 of the gold, raw, gold at the ends"].value == 1
    assert found["Recall@1 that is gained by the divided score, gold at inner places"].value == 1


def test_ties_count_against_the_gold():
    assert rank_of_gold(np.array([1.0, 2.0, 2.0, np.nan]), 1) == 2
    assert rank_of_gold(np.array([1.0, 3.0, 2.0]), 1) == 1
    assert rank_of_gold(np.array([np.nan, 3.0]), 0) is None


def turned(attention_at, turns=(0, 5), number=NUM_DOCUMENTS):
    """Prompts of one text with its documents at other places, and the attention that document d gets at place k."""
    return [
        Documents(
            prompt="p",
            unit=str(turn),
            length=80,
            given="all",
            turned=turn,
            attention=np.array([attention_at((k - turn) % number, k) for k in range(number)]),
            gold=None,
            correct=None,
        )
        for turn in turns
    ]


def test_the_rank_correlation_is_one_where_the_model_of_it_holds():
    generator = np.random.default_rng(1)
    relevance, bias = generator.random(NUM_DOCUMENTS), generator.random(NUM_DOCUMENTS)
    added = rank_correlation(turned(lambda d, k: relevance[d] + bias[k]), logarithmic=False)
    times = rank_correlation(turned(lambda d, k: (1 + relevance[d]) * (1 + bias[k])), logarithmic=True)
    # Documents five apart share both their places: five pairs, one pair of places each.
    assert added == (pytest.approx(1.0), 5)
    assert times == (pytest.approx(1.0), 5)


def test_the_rank_correlation_is_spearmans_of_the_leads():
    generator = np.random.default_rng(2)
    noise = generator.random((NUM_DOCUMENTS, NUM_DOCUMENTS))
    value, num = rank_correlation(turned(lambda d, k: noise[d, k]), logarithmic=False)
    here = [noise[d, d] - noise[d + 5, d] for d in range(5)]
    there = [noise[d, d + 5] - noise[d + 5, d + 5] for d in range(5)]
    both = [*here, *(-x for x in here)], [*there, *(-x for x in there)]
    assert num == 5
    assert value == pytest.approx(stats.spearmanr(*both).statistic)


def test_places_that_say_nothing_of_each_other_give_none():
    assert rank_correlation(turned(lambda d, k: 1.0), logarithmic=False) is None
    assert rank_correlation(turned(lambda d, k: float(d), turns=(0,)), logarithmic=False) is None


def test_planted_relevance_and_bias_are_found_over_both_models():
    found = details(document_attention(planted(0.8, 3)))
    for name in ("relevance + bias", "relevance × bias, on logarithms"):
        each = found[f"rank correlation of leads at two places ({name}), 100 quadruplets"]
        assert each.interval.low > 0.5
        assert each.n == 20


def test_a_document_at_the_sinks_place_is_left_out():
    profile = 0.01 * np.ones(NUM_DOCUMENTS)
    profile[0] = 5.0
    traces = dummies(profile)
    for trace in traces:
        # The first document now begins with the first token, as without an instruction.
        spans = tuple(
            type(span)(span.name, span.start - 10, span.stop - 10) for span in trace.sample.spans if span.start >= 10
        )
        trace.dataset = trace.dataset.sel(span=[span.name for span in spans])
        object.__setattr__(trace.sample, "spans", spans)
    finding = document_attention(traces)
    assert finding.measured.value == pytest.approx(0)
    assert min(row["place"] for row in finding.records() if row["num_dummies"]) > 0


def test_without_dummies_the_other_documents_and_then_the_gold_fix_the_relevance():
    traces = [trace for trace in biased(lambda x: 1 + 0.8 * (2 * x - 1) ** 2, 1) if "dummies" not in trace.unit]
    finding = document_attention(traces)
    assert "documents that do not answer" in finding.measured.name
    for trace in traces:
        trace.dataset = trace.dataset.sel(span=["needle"])
        trace.sample.facts.pop("gold_index", None)
        spans = tuple(span for span in trace.sample.spans if span.name == "needle")
        object.__setattr__(trace.sample, "spans", spans)
    finding = document_attention([trace for trace in traces if trace.facts["role"] == "baseline"])
    assert finding.measured.name.endswith("the gold")
    assert finding.measured.n == 20


@pytest.mark.parametrize("kind", ["nothing", "no spans", "one document", "one place", "no attention", "no row"])
def test_what_is_missing_is_said_in_a_sentence(sample, trace, kind):
    made = [document_trace(document_sample(i, 4), np.ones(10)) for i in range(6)]
    if kind == "nothing":
        made = []
    elif kind == "no spans":
        made = [trace(sample(i)) for i in range(6)]
    elif kind == "one document":
        made = [document_trace(document_sample(i, None, number=1), np.ones(1)) for i in range(6)]
    elif kind == "one place":
        made = [document_trace(document_sample(i, 0, number=2), np.ones(2)) for i in range(6)]
    elif kind == "no attention":
        for each in made:
            each.dataset = each.dataset.drop_vars("span_mass")
    else:
        for each in made:
            each.dataset = each.dataset.isel(row=slice(0, 0))
    finding = document_attention(made)
    assert finding.verdict == "inconclusive"
    assert finding.measured.value is None
    assert finding.claim.endswith(".")
    assert finding.figures == ()


def test_heads_are_chosen_and_unknown_ones_refused():
    made = dummies(0.01 * (1 + PLACES))
    for each in made:
        each["span_mass"].values[0, 0] = each["span_mass"].values[0, 0] * np.array([1, *([3] + [1] * 9)])
    finding = document_attention(made, heads=[[0, 0]])
    assert finding.measured.value > document_attention(made, heads=[[1, 2]]).measured.value
    with pytest.raises(UsageError, match="2 layers of 3 heads"):
        document_attention(made, heads=[[2, 0]])


def test_an_intervention_and_a_nan_do_not_mix_in():
    made = planted(0.8, 0)
    whole = document_attention(made)
    extra = document_trace(document_sample(0, 4), np.ones(10), intervention={"ablate_heads": {"heads": [[0, 0]]}})
    broken = document_trace(document_sample(99, 4, given="all_dummies"), np.full(10, np.nan))
    finding = document_attention([*made, extra, broken])
    assert finding.measured.value == whole.measured.value
    assert finding.measured.dropped == 1


def test_figures_are_valid():
    finding = document_attention(planted(0.8, 0))
    assert [figure.name for figure in finding.figures] == [
        "attention_by_place",
        "document_attention",
        "gold_by_attention",
    ]
    for figure in finding.figures:
        go.Figure(figure.plotly)

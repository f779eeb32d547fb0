"""What holds of every analysis that is found, this toolkit's and others'."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import pytest

from probe import discovery
from probe.finding import Finding
from tests.effects import playing

ANALYSES = discovery.names("analyses")


@pytest.fixture(scope="module")
def run_of(run):
    """What each analysis finds most in: what is planted for it, or else one run for all."""

    def chosen(name):
        if name not in playing.analyses():
            return run
        effects = playing.effects(name)
        return effects.planted(effects.strengths[-1], 0)

    return chosen


@pytest.fixture(scope="module")
def run(sample, trace, looking):
    traces = []
    generator = np.random.default_rng(0)
    for length, rate in ((64, 1.0), (128, 0.6)):
        for i in range(20):
            made = sample(i, length=length, depth=(0.0, 0.5, 1.0)[i % 3], half=("find", "test")[i % 2])
            arrays = {
                "received_mass_horizon_64": (("layer", "head", "key"), generator.random((3, 4, length))),
                "entropy": (("layer", "head", "query"), generator.random((3, 4, length))),
                "max_probability": (("layer", "head", "query"), generator.random((3, 4, length))),
                "sink_mass": (("layer", "head", "query"), generator.random((3, 4, length))),
                "recent_mass": (("layer", "head", "query"), generator.random((3, 4, length))),
                "value_norm": (("layer", "kv_head", "key"), 1 + generator.random((3, 2, length))),
                "span_mass": (("layer", "head", "row", "span"), generator.random((3, 4, 4, 3)) / 3),
            }
            right = bool(generator.random() < rate)
            whole = trace(made, correct=right, keys=looking(made, {(2, 1): float(right)}, seed=i), arrays=arrays)
            whole.dataset = whole.dataset.assign_coords(span=["needle", "needle_value", "question"])
            traces += [
                whole,
                trace(made, correct=False, role="needle_absent"),
                trace(made, role="gold_only"),
                trace(made, correct=False, role="treatment", intervention={"ablate_heads": {"heads": [[2, 1]]}}),
                *(trace(made, role="control", draw=draw) for draw in range(3)),
            ]
    for i in range(60):
        p = (0.8, 0.98)[i % 2]
        made = sample(100 + i, p=p, age_pairs=1 + i, half=("find", "test")[i % 4 // 2])
        traces.append(trace(made, correct=p == 0.8 or i % 4 > 1, keys=looking(made, {})))
    return traces


def test_there_are_the_five():
    assert {"retrieval_heads", "attention_sinks", "position_bias", "effective_length", "head_ablation"} <= set(ANALYSES)


@pytest.mark.parametrize("name", ANALYSES)
def test_it_says_what_it_asks_needs_and_follows(name):
    analysis = discovery.get("analyses", name)
    assert analysis.question.endswith("?")
    assert analysis.source
    assert isinstance(analysis.needs(), Mapping)
    first, *rest = inspect.signature(analysis).parameters.values()
    assert first.default is inspect.Parameter.empty
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in rest)


@pytest.mark.parametrize("name", ANALYSES)
def test_its_finding_is_complete_deterministic_and_round_trips(run_of, name):
    analysis, run = discovery.get("analyses", name), run_of(name)
    finding = analysis(run)
    assert finding.analysis == name
    assert finding.measured.value is not None
    assert finding.measured.interval is not None
    assert finding.measured.n > 0
    assert finding.control is not None
    assert finding.claim.endswith(".")
    assert finding.definition
    assert finding.evidence
    assert finding.table
    assert finding.figures
    assert analysis(run[::-1]) == finding
    text = json.dumps(finding.to_json(), allow_nan=False)
    assert Finding.from_json(json.loads(text)) == finding
    assert "<div" in finding._repr_html_()


@pytest.mark.parametrize("name", ANALYSES)
def test_its_figures_are_valid_and_small(run_of, name):
    for figure in discovery.get("analyses", name)(run_of(name)).figures:
        go.Figure(figure.plotly)
        assert figure.caption.endswith(".")
        assert len(json.dumps(figure.plotly)) < 200_000


@pytest.mark.parametrize("name", ANALYSES)
def test_nothing_at_all_is_no_error_and_no_claim(name):
    finding = discovery.get("analyses", name)([])
    assert finding.measured.value is None
    assert finding.verdict == "inconclusive"


def test_analyses_start_without_torch():
    code = (
        "import sys\n"
        "from probe import discovery\n"
        "import probe.storage.trace_store\n"
        "for name in discovery.names('analyses'): discovery.get('analyses', name)\n"
        "assert not {'torch', 'transformers', 'triton', 'dash'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

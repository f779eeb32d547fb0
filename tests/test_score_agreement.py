"""A run's retrieval scores are compared with a score file in the authors' form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import probe
from probe.command.cli import app
from probe.errors import NotAvailable, UsageError
from probe.finding import Finding
from probe.score_agreement import compare_scores, read_score_file
from tests.analyses.conftest import NUM_HEADS, NUM_LAYERS, make_keys, make_sample, make_trace

COPYING = {(2, 1): 0.9, (1, 3): 0.6, (0, 0): 0.3}


def traces(copying: dict[tuple[int, int], float], num: int = 40) -> list[Any]:
    samples = [make_sample(i, depth=(0.1, 0.5, 0.9)[i % 3]) for i in range(num)]
    return [make_trace(s, keys=make_keys(s, copying, seed=i)) for i, s in enumerate(samples)]


def score_file(folder: Path, means: dict[tuple[int, int], float], num: int = 60) -> Path:
    """A file of 12 heads: each instance's score is one of 0, 1/4 … 1, as a needle of four tokens gives."""
    generator = np.random.default_rng(0)
    heads = [(layer, head) for layer in range(NUM_LAYERS) for head in range(NUM_HEADS)]
    path = folder / "scores.json"
    drawn = {f"{at[0]}-{at[1]}": (generator.binomial(4, means.get(at, 0.0), num) / 4).tolist() for at in heads}
    path.write_text(json.dumps(drawn))
    return path


def test_like_scores_agree_and_pearson_is_numpys(tmp_path: Path) -> None:
    path = score_file(tmp_path, COPYING)
    finding = compare_scores(traces(COPYING), path, top=(3, 1))
    assert finding.verdict == "supported"
    run = np.zeros((NUM_LAYERS, NUM_HEADS))
    for trace in traces(COPYING):
        place = trace.sample.span("needle_value").start
        run += (trace["top_keys_k_1"].to_numpy()[..., 0] == place + np.arange(4)).mean(-1) / 40
    published = {name: np.mean(each) for name, each in json.loads(path.read_text()).items()}
    theirs = [published[f"{layer}-{head}"] for layer in range(NUM_LAYERS) for head in range(NUM_HEADS)]
    assert finding.measured.value == pytest.approx(np.corrcoef(run.ravel(), theirs)[0, 1])
    assert finding.measured.interval is not None
    assert 0.9 < finding.measured.interval.low < finding.measured.value < finding.measured.interval.high <= 1
    shared = {m.name: m for m in finding.details}
    assert shared["heads shared by both top 3"].value == 3
    assert shared["heads shared by both top 3, ranked at random"].value == pytest.approx(9 / 12)
    assert finding.records()[0]["layer"] == 2
    assert finding.records()[0]["rank_in_the_run"] == 1
    assert Finding.from_json(finding.to_json()) == finding


def test_other_heads_do_not_agree(tmp_path: Path) -> None:
    finding = compare_scores(traces(COPYING), score_file(tmp_path, {(0, 2): 0.9, (1, 1): 0.6, (2, 2): 0.3}), top=(3,))
    assert finding.verdict == "refuted"
    assert finding.details[0].value == 0


def test_few_prompts_and_no_success_settle_nothing(tmp_path: Path) -> None:
    path = score_file(tmp_path, COPYING)
    assert compare_scores(traces(COPYING, num=3), path, top=(3,)).verdict == "inconclusive"
    wrong = [make_trace(t.sample, keys=make_keys(t.sample, {}), correct=False) for t in traces(COPYING, num=8)]
    nothing = compare_scores(wrong, path)
    assert (nothing.verdict, nothing.measured.value, nothing.measured.dropped) == ("inconclusive", None, 8)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "is not JSON"),
        ("[]", "expected"),
        ("{}", "expected"),
        ('{"0.1": [1]}', "'0.1' is no head"),
        ('{"0-1": 1}', "head 0-1: expected a list of finite numbers"),
        ('{"0-1": [true]}', "finite numbers"),
        ('{"0-1": [NaN]}', "finite numbers"),
        ('{"0-1": [1], "0-2": []}', "heads have from 0 to 1 scores"),
    ],
)
def test_what_is_no_score_file_is_said(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"scores\.json") as error:
        read_score_file(path)
    assert what in str(error.value)


def test_a_file_that_is_not_there_or_another_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="no score file"):
        compare_scores(traces(COPYING), tmp_path / "none.json")
    path = tmp_path / "scores.json"
    path.write_text('{"0-0": [1], "0-1": [0]}')
    with pytest.raises(UsageError, match="scores 2 heads, up to \\(0, 1\\), and the run has 12"):
        compare_scores(traces(COPYING), path)
    with pytest.raises(UsageError, match="top 13: there are 12 heads"):
        compare_scores(traces(COPYING), score_file(tmp_path, COPYING), top=(13,))


def test_the_command_compares_a_run(tmp_path: Path) -> None:
    probe.run("first-look", lengths=(64,), depths=(0.5,), limit=1, out=tmp_path / "run")
    found = {(2, 2): 1.0, (2, 5): 1.0, (2, 9): 1.0, (2, 13): 1.0}
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({f"{i}-{j}": [found.get((i, j), 0.0)] * 5 for i in range(3) for j in range(16)}))
    done = CliRunner().invoke(app, ["scores", str(tmp_path / "run"), str(path), "--top", "4"])
    assert done.exit_code == 0, done.output
    assert "Mean scores agree with r = " in done.output
    assert "of 4 top heads are shared (48 heads, 1 prompts answered right" in done.output
    assert CliRunner().invoke(app, ["scores", str(tmp_path / "run"), str(tmp_path / "no")]).exit_code == 3

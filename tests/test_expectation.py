"""What a casebook expects is refused where it cannot be, judged where it can, and shown everywhere the run is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import probe
from probe.casebook import load
from probe.command.cli import app
from probe.errors import CasebookError
from probe.expectation import Expectation, judged
from probe.finding import Finding, Interval, Measurement

GOOD = """\
name: small
question: Does it?
workload:
  needle: {lengths: [128], depths: [0.5], samples: 2}
stages:
  - name: read
    conditions:
      baseline: {role: baseline, capture: true}
    analyses: [retrieval_heads, attention_sinks]
  - name: again
    conditions:
      baseline: {role: baseline, capture: true}
    analyses: [retrieval_heads]
expect:
  - {analysis: attention_sinks, verdict: supported}
  - {analysis: retrieval_heads, stage: again, between: [2, null]}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "book.yaml"
    path.write_text(text)
    return path


def finding(**changed: object) -> Finding:
    values = {
        "analysis": "retrieval_heads",
        "question": "?",
        "claim": "4 of 48.",
        "verdict": "supported",
        "measured": Measurement(name="heads", value=8.3, unit="%", interval=Interval(low=8, high=9, method="m"), n=38),
        "control": Measurement(name="shuffled", value=0.0, n=38),
        "details": (Measurement(name="strongest", value=None, n=0),),
        "definition": "d",
        "source": "s",
    }
    return Finding(**(values | changed))  # type: ignore[arg-type]


def test_expectations_are_read(tmp_path: Path) -> None:
    first, second = load(written(tmp_path, GOOD)).expect
    assert (first.verdict, second.between) == ("supported", (2.0, None))


@pytest.mark.parametrize(
    ("before", "after", "place", "what"),
    [
        ("{analysis: attention_sinks", "{analysis: attention_sink", "15:6", "no stage runs the analysis"),
        ("{analysis: attention_sinks", "{analysis: head_ablation", "15:6", "no stage runs the analysis"),
        ("stage: again", "stage: agian", "16:33", "there is no stage 'agian'; there are ['read', 'again']"),
        ("{analysis: attention_sinks,", "{analysis: attention_sinks, stage: again,", "15:33", "does not run"),
        (" stage: again,", "", "16:6", "stands in the stages ['read', 'again']; say which"),
        ("verdict: supported", "verdict: yes", "15:33", "got 'yes'"),
        ("verdict: supported", "verdikt: supported", "15:33", "did you mean 'verdict'"),
        (", verdict: supported", "", "15:5", "expects nothing"),
        ("verdict: supported", "measure: heads, verdict: supported", "15:5", "`between` is missing"),
        ("[2, null]", "[2, 1]", "16:5", "no number is"),
        ("[2, null]", "[null, null]", "16:5", "allows every number"),
        ("[2, null]", "[2]", "16:47", "required"),
        ("[2, null]", "[2, many]", "16:60", "many"),
        ("[retrieval_heads]", "[retrieval_heads, retrieval_heads]", "16:6", "runs twice in 'again'"),
    ],
)
def test_what_cannot_be_expected_is_refused_with_its_place(
    tmp_path: Path, before: str, after: str, place: str, what: str
) -> None:
    assert GOOD.count(before) == 1
    path = written(tmp_path, GOOD.replace(before, after))
    with pytest.raises(CasebookError) as error:
        load(path)
    assert f"{path}:{place}: " in str(error.value)
    assert what in str(error.value)


@pytest.mark.parametrize(
    ("expected", "met", "found"),
    [
        ({"verdict": "supported"}, True, "supported"),
        ({"verdict": "refuted"}, False, "supported"),
        ({"between": (8, 9)}, True, "supported, heads: 8.3 % [8, 9] (n = 38)"),
        ({"between": (8.3, 8.3)}, True, "supported, heads: 8.3 % [8, 9] (n = 38)"),
        ({"between": (None, 8.29)}, False, "supported, heads: 8.3 % [8, 9] (n = 38)"),
        ({"between": (8.31, None)}, False, "supported, heads: 8.3 % [8, 9] (n = 38)"),
        ({"verdict": "refuted", "between": (8, 9)}, False, "supported, heads: 8.3 % [8, 9] (n = 38)"),
        ({"measure": "shuffled", "between": (0, 1)}, True, "supported, shuffled: 0 (n = 38)"),
        ({"measure": "strongest", "between": (0, 1)}, False, "supported, strongest: not measured"),
        (
            {"measure": "weakest", "between": (0, 1)},
            False,
            "supported, no measurement 'weakest'; there are ['heads', 'shuffled', 'strongest']",
        ),
        ({"stage": "other", "verdict": "supported"}, False, "no such finding; stage other was not played: why"),
    ],
)
def test_an_expectation_is_met_or_not_with_what_was_found(expected: dict[str, object], met: bool, found: str) -> None:
    expectation = Expectation(analysis="retrieval_heads", **expected)  # type: ignore[arg-type]
    (result,) = judged([expectation], [("read", finding())], ["stage other was not played: why"])
    assert (result["met"], result["found"]) == (met, found)


def test_what_there_is_instead_is_told_once() -> None:
    expectations = [Expectation(analysis="retrieval_heads", measure=m, between=(0, 1)) for m in ("a", "b")]
    first, second = judged(expectations, [("read", finding())], [])
    assert str(first["found"]).endswith("'a'; there are ['heads', 'shuffled', 'strongest']")
    assert second["found"] == "supported, no measurement 'b' (see above)"


def test_the_finding_of_the_stage_that_is_named_counts() -> None:
    both = [("read", finding()), ("again", finding(verdict="refuted"))]
    expectations = [Expectation(analysis="retrieval_heads", stage=s, verdict="refuted") for s in ("read", "again")]
    assert [each["met"] for each in judged(expectations, both, [])] == [False, True]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expected")
    probe.run(written(folder, GOOD), out=folder / "run")
    return folder


def test_a_run_keeps_the_findings_of_every_stage_and_what_became_of_each_expectation(played: Path) -> None:
    run = probe.open(played / "run")
    assert isinstance(run, probe.Run)
    assert [f.analysis for f in run.findings()] == ["retrieval_heads", "attention_sinks", "retrieval_heads"]
    results = run.record["expected"]["results"]
    assert [each["met"] for each in results] == [False, True]
    assert (run.record["expected"]["of"], run.record["expected"]["differs_in"]) == ("needle", [])
    report = (played / "run" / "report.html").read_text()
    assert "What the casebook expects" in report
    assert "1 of 2 expectations of needle met" in report


def test_the_command_exits_1_where_an_expectation_is_not_met(played: Path) -> None:
    command = ["run", str(played / "book.yaml"), "--out", str(played / "run"), "--quiet"]
    unchecked = CliRunner().invoke(app, command)
    assert unchecked.exit_code == 0
    checked = CliRunner().invoke(app, [*command, "--check"])
    assert checked.exit_code == 1
    assert "✗ attention_sinks: supported; found " in checked.output
    assert "✓ retrieval_heads in again: headline at least 2; found " in checked.output
    assert "1 of 2 expectations are not met" in checked.output


def test_what_is_expected_is_no_part_of_what_a_run_is(played: Path) -> None:
    met = GOOD.replace("attention_sinks, verdict: supported", "attention_sinks, between: [0, 100]")
    (played / "met").mkdir()
    command = ["run", str(written(played / "met", met)), "--out", str(played / "run"), "--check", "--quiet", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert [each["met"] for each in json.loads(done.stdout)["expected"]["results"]] == [True, True]


def test_a_run_of_something_else_says_what_the_expectations_are_of(played: Path) -> None:
    run = probe.run(played / "book.yaml", limit=1, seed=3, out=played / "other")
    assert run.record["expected"]["differs_in"] == ["seed", "workload"]
    assert "this run differs in seed, workload" in (played / "other" / "report.html").read_text()


def test_a_casebook_that_expects_nothing_cannot_be_checked(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.partition("expect:")[0])
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "run"), "--check"])
    assert done.exit_code == 2
    assert "expects nothing" in done.output
    assert not (tmp_path / "run").exists()

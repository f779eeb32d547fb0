"""A casebook's conditions: several interventions in order, fields tuned on the other half, refused before the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probe
from probe import strict_yaml
from probe.casebook import Casebook, check, load
from probe.command.cli import app
from probe.dry_run import dry_run
from probe.errors import CasebookError, UsageError
from probe.finding import Finding, Measurement, Suggestion
from probe.plan import CannotPlay, resolve
from probe.storage.trace_store import Run

HEAD = "name: tiny\nquestion: Does it?\nmodel: needle\nworkload: {needle: {lengths: [64], depths: [0.5], samples: 4}}\n"
ONE = "{ablate_heads: {heads: [[2, 2]]}}"
TWO = f"[{ONE}, {{temperature: {{tau: 0.5}}}}]"
TUNED = f"""\
{HEAD}stages:
  - name: tune
    half: find
    conditions:
      baseline: {{role: baseline}}
      sharp: {{intervention: {{temperature: {{tau: 0.5}}}}}}
      blind: {{intervention: [{{temperature: {{tau: 8.0}}}}, {ONE}]}}
      cut: {{intervention: {ONE}}}
    analyses:
      - {{choose_condition: {{among: [sharp, blind]}}, as: best-temperature}}
      - {{choose_condition: {{among: [blind]}}, as: worst}}
  - name: test
    half: test
    conditions:
      baseline: {{role: baseline}}
      tuned: {{role: treatment, intervention: {{from_finding: best-temperature}}}}
      both: {{role: treatment, intervention: [{{cap_logits: {{cap: 30.0}}}}, {{from_finding: worst}}]}}
    analyses:
      - compare_conditions: {{half: test}}
expect:
  - {{analysis: best-temperature, measure: share of right answers with nothing done, between: [0, 100]}}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "book.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def played(condition: str, **also: str) -> str:
    conditions = "".join(f"      {name}: {value}\n" for name, value in {"x": condition, **also}.items())
    return f"{HEAD}stages:\n  - name: s\n    conditions:\n      baseline: {{role: baseline}}\n{conditions}"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tuned")
    return probe.run(written(folder, TUNED), out=folder / "run")


def test_a_tuned_field_is_chosen_on_one_half_and_played_on_the_other(tuned: Run) -> None:
    assert tuned.record["status"] == "complete"
    best, worst, compared = tuned.findings()
    assert (best.name, worst.name, compared.name) == ("best-temperature", "worst", "")
    assert best.suggests[0].intervention == "temperature"
    halves = {tuned.trace(unit).sample.facts["half"] for unit in best.evidence}
    assert halves == {"find"}
    (tau,) = {json.dumps(trace.facts["intervention"]) for trace in tuned.traces(condition="tuned")}
    assert json.loads(tau) == {"temperature": best.suggests[0].fields}
    assert {trace.sample.facts["half"] for trace in tuned.traces(stage="test")} == {"test"}
    assert {each["condition"] for each in compared.records()} == {"tuned", "both"}


def test_several_are_played_in_their_order_those_of_a_finding_within_them(tuned: Run) -> None:
    for trace in tuned.traces(condition="both"):
        names = [next(iter(part)) for part in trace.facts["intervention"]["together"]["interventions"]]
        assert names == ["cap_logits", "temperature", "ablate_heads"]


def test_what_they_did_is_what_nested_blocks_do(tuned: Run) -> None:
    model = probe.load("needle")
    for trace in tuned.traces(condition="blind", stage="tune"):
        with probe.temperature(8.0)(model), probe.ablate_heads([(2, 2)])(model):
            by_hand = probe.trace(model, trace.sample, statistics=[])
        assert by_hand.outcome == trace.outcome


def test_what_reading_took_is_on_record_and_no_part_of_what_a_unit_is(tuned: Run, tmp_path: Path) -> None:
    for trace in tuned.traces():
        assert trace.cost is not None
        assert trace.cost["seconds"] > 0
        assert trace.cost["peak_bytes"] is None or trace.cost["peak_bytes"] > 1e7
    other = probe.run(written(tmp_path, TUNED.split("expect:")[0]), out=tmp_path / "run")
    assert sorted(other.units) == sorted(tuned.units)
    assert [f.verdict for f in other.findings()] == [f.verdict for f in tuned.findings()]
    assert [f.claim for f in other.findings()] == [f.claim for f in tuned.findings()]


def test_an_expectation_may_call_a_finding_by_its_name(tuned: Run) -> None:
    (result,) = tuned.record["expected"]["results"]
    assert result["met"]
    assert result["expected"].startswith("best-temperature")


def test_the_report_names_both_and_how_to_play_them(tuned: Run) -> None:
    text = (tuned.path / "report.html").read_text(encoding="utf-8")
    assert "best-temperature" in text
    assert "probe.temperature(tau=0.5" in text
    assert "probe.together(interventions=[{&#39;temperature&#39;" in text
    # In a casebook several are a list.
    assert "intervention: [{&#34;temperature&#34;" in text


def test_a_casebook_with_lists_survives_its_own_json(tmp_path: Path) -> None:
    book = load(written(tmp_path, TUNED.split("expect:")[0]))
    assert Casebook.model_validate_json(book.model_dump_json()) == book


def found(**suggested: dict[str, Any]) -> Finding:
    ((intervention, fields),) = suggested.items()
    return Finding(
        analysis="choose_condition", question="?", claim="c.", verdict="supported", definition="d", source="s",
        measured=Measurement(name="m", value=1.0, n=1),
        suggests=(Suggestion(intervention=intervention, fields=fields, reason="r"),),
    )  # fmt: skip


BAD = {
    "[]": "at least 2",
    f"[{ONE}]": "at least 2",
    "[{limit_distance: {window: 8}}, {interpolate_positions: {factor: 4.0}}]": "both set positions",
    "[{limit_distance: {window: 8}}, {temprature: {}}]": "did you mean 'temperature'",
    "[{limit_distance: {window: 0}}, {temperature: {tau: 0.5}}]": "limit_distance: window is at least 1",
    "[{limit_distance: {window: many}}, {temperature: {tau: 0.5}}]": "valid integer",
    "[{from_finding: nobody}, {temperature: {tau: 0.5}}]": "no earlier stage runs the analysis 'nobody'",
    "[{matched_to: x}, {temperature: {tau: 0.5}}]": "neither lists nor matched_to",
    f"[{ONE}, {TWO}]": "neither lists nor matched_to",
    "{temperature: {tau: 0.5}, cap_logits: {cap: 30.0}}": "several are a list",
    "{together: {interventions: []}}": "several interventions are a list",
}


@pytest.mark.parametrize("condition", BAD)
def test_a_list_that_is_wrong_is_named_with_its_place(tmp_path: Path, condition: str) -> None:
    with pytest.raises(CasebookError) as error:
        load(written(tmp_path, played(f"{{intervention: {condition}}}")))
    assert "book.yaml:9:" in str(error.value)
    assert BAD[condition] in str(error.value)


def test_nothing_can_be_matched_to_a_list(tmp_path: Path) -> None:
    text = played(f"{{intervention: {TWO}}}", y="{intervention: {matched_to: x}}")
    with pytest.raises(CasebookError, match="names no heads of its own"):
        load(written(tmp_path, text))


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("as: worst", "as: best-temperature", "two findings are called 'best-temperature'"),
        ("as: worst", "as: retrieval_heads", "an analysis is called that"),
        ("as: worst", "as: No Name", "`as` is a name of small letters"),
        ("as: worst", "az: worst", "expected a name or"),
        (", as: worst", "", "no earlier stage runs the analysis 'worst'"),
        ("from_finding: worst", "from_finding: wurst", "no earlier stage runs the analysis 'wurst'"),
        (
            "      - compare_conditions: {half: test}",
            "      - {compare_conditions: {}, as: worst}",
            "an earlier finding is",
        ),
        (
            "expect:",
            "expect:\n  - {analysis: choose_condition, verdict: supported}",
            "'choose_condition' runs twice in 'tune'; say which by its name (`as`)",
        ),
        (
            "among: [sharp, blind]",
            "among: [sharp, blond]",
            "no condition 'blond' so far; there are baseline, blind, cut",
        ),
        ("among: [sharp, blind]", "among: [sharp, tuned]", "no condition 'tuned' so far"),
        ("{half: test}\n", "{stage: tset}\n", "no stage 'tset' so far; there are test, tune"),
        ("{half: test}\n", "{leave_out: [test/tuned], baseline: base}\n", "no condition 'base' so far"),
        ("{choose_condition: {among: [blind]}, as: worst}", "{capture: {}, as: worst}", "unknown analysis 'capture'"),
    ],
)
def test_a_finding_has_a_name_of_its_own_or_is_refused(tmp_path: Path, before: str, after: str, what: str) -> None:
    assert before in TUNED
    with pytest.raises(CasebookError) as error:
        load(written(tmp_path, TUNED.replace(before, after)))
    assert what in str(error.value)


def test_two_findings_without_names_cannot_be_told_apart(tmp_path: Path) -> None:
    text = TUNED.replace(", as: best-temperature", "").replace(", as: worst", "").split("expect:")[0]
    text = text.replace("from_finding: best-temperature", "from_finding: choose_condition")
    with pytest.raises(CasebookError, match="'choose_condition' gives several findings; name the one meant with `as`"):
        load(written(tmp_path, text))


DOES_NOT_APPLY = {
    "{found_in_the_middle: {}}": "found_in_the_middle",
    "{ablate_heads: {heads: [[0, 99]]}}": r"no head (0, 99)",
    "{temperature: {tau: 0.5, layers: [7]}}": "layer 7",
    "{block_attention: {keys_of: moon}}": "block_attention",
    "{reset_document_positions: {}}": "document",
    "{keep_sinks_and_recent: {budget: 0}}": "budget",
    "{snapkv: {budget: 0}}": "budget",
    f"[{ONE}, {{found_in_the_middle: {{}}}}]": "found_in_the_middle",
}


@pytest.mark.parametrize("condition", DOES_NOT_APPLY)
def test_what_does_not_apply_is_an_error_before_the_run(tmp_path: Path, condition: str) -> None:
    book = written(tmp_path, played(f"{{intervention: {condition}}}"))
    done = CliRunner().invoke(app, ["run", str(book), "--out", str(tmp_path / "run")])
    assert done.exit_code == 2, done.output
    said = " ".join(done.output.split())
    assert DOES_NOT_APPLY[condition] in said
    assert not (tmp_path / "run").exists()


def test_the_condition_is_named_that_does_not_apply(tmp_path: Path) -> None:
    book = written(tmp_path, played("{intervention: {ablate_heads: {heads: [[0, 99]]}}}"))
    with pytest.raises(UsageError, match=r"condition 'x': ablate_heads: needle .* has no head"):
        probe.run(book, out=tmp_path / "run")


def test_what_a_finding_suggests_and_does_not_apply_is_said_before_its_stage(tmp_path: Path) -> None:
    text = TUNED.split("expect:")[0].replace(
        "{from_finding: best-temperature}", "{from_finding: best-temperature, fields: {layers: [9]}}"
    )
    run = probe.run(written(tmp_path, text), out=tmp_path / "run")
    skipped = run.record["stages"]["test"]["skipped"]
    assert skipped.startswith("condition 'tuned': temperature: ")
    assert "no attention in layer 9" in skipped
    assert {trace.stage for trace in run.traces()} == {"tune"}


@pytest.mark.parametrize(
    ("field", "what"),
    [("tau: -1.0", "tau is"), ("colour: red", "no field 'colour'"), ("tau: warm", "valid number")],
)
def test_a_field_that_replaces_a_suggestions_is_checked_like_any_other(field: str, what: str) -> None:
    book = TUNED.replace("{from_finding: best-temperature}", f"{{from_finding: best-temperature, fields: {{{field}}}}}")
    stage = check(strict_yaml.parse(book.encode(), "book.yaml")).stages[1]
    # The casebook's own mistake, which ends the run; it is no stage that cannot be played for what was found.
    with pytest.raises(UsageError, match=rf"condition 'tuned', its fields \w+: .*{what}") as caught:
        resolve(stage, {"best-temperature": found(temperature={"tau": 0.5})}, lambda *_: [])
    assert not isinstance(caught.value, CannotPlay)


def test_what_a_finding_suggests_may_contradict_what_stands_beside_it() -> None:
    text = TUNED.replace("cap_logits: {cap: 30.0}", "interpolate_positions: {factor: 2.0}")
    stage = check(strict_yaml.parse(text.encode(), "book.yaml")).stages[1]
    suggested = {"best-temperature": found(temperature={"tau": 0.5}), "worst": found(limit_distance={"window": 9})}
    with pytest.raises(CannotPlay, match=r"interpolate_positions .* and limit_distance .* contradict"):
        resolve(stage, suggested, lambda *_: [])


def test_a_dry_run_counts_every_condition_and_says_at_most_where_a_finding_decides(tmp_path: Path) -> None:
    told = dry_run(written(tmp_path, TUNED.split("expect:")[0]))
    assert [(stage.units, stage.at_most) for stage in told.stages] == [(8, False), (6, True)]


def test_the_list_of_interventions_says_what_each_does() -> None:
    done = CliRunner().invoke(app, ["list", "interventions"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    for name in ("together", "limit_distance", "temperature"):
        assert any(line.split()[:1] == [name] and len(line.split()) > 4 for line in done.output.splitlines())

"""The overview says what was found, most surprising first, and what each finding rests on; so does the first paint."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from probe.dashboard.application.first_paint import first_paint
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.panel import Grid, Panel
from probe.dashboard.application.plain_html import plain_html
from probe.dashboard.overview import overview
from probe.dashboard.provenance import provenance
from probe.finding import Comparison, Finding, Interval, Measurement, Suggestion
from probe.storage.store import write_json
from probe.telling.provenance import casebook_yaml
from probe.telling.surprise import ORDER, by_surprise, effect_in_standard_errors
from tests.dashboard.conftest import wait
from tests.dashboard.planted_run import planted, unit_id, write_run

UNITS = [unit for unit in planted() if unit["condition"] == "baseline" and unit["depth"] == 0]
HOSTILE = "</script><script>window.ran=1</script>\u202e"


def finding(analysis: str, verdict: Any = "supported", sigmas: float | None = None, **fields: Any) -> Finding:
    """Return a finding whose value lies so many standard errors from its control."""
    half = 1.959964
    interval = Interval(low=10 - half, high=10 + half, method="planted")
    comparison = None
    if sigmas is not None:
        at = Interval(low=sigmas - half, high=sigmas + half, method="planted")
        comparison = Comparison(name="a test", difference=sigmas, interval=at, n=9)
    said: dict[str, Any] = {
        "analysis": analysis,
        "question": f"Is {analysis} so?",
        "headline": f"{analysis} it is",
        "claim": f"{analysis} is so by {sigmas}.",
        "measured": Measurement(name="how much", value=10.0, interval=interval, n=9),
        "definition": "planted",
        "source": "this toolkit's own",
        "evidence": tuple(unit_id(unit) for unit in UNITS),
    }
    return Finding(verdict=verdict, **(said | {"comparison": comparison} | fields))


FOUND = [
    finding("weak", sigmas=2.0),
    finding("open", "inconclusive", sigmas=9.0),
    finding("strong", sigmas=30.0),
    finding("ruled_out", "refuted", sigmas=0.5),
    finding("otherwise", sigmas=1.0),
    finding("unmeasured", measured=Measurement(name="how much", value=None, n=0)),
]
WANTED = ["otherwise", "ruled_out", "strong", "weak", "open", "unmeasured"]
STAGES = [{"name": "read", "analyses": [each.analysis for each in FOUND]}]
EXPECT = [{"analysis": "otherwise", "stage": None}, {"analysis": "strong", "stage": "read"}, {"analysis": "absent"}]
RESULTS = [
    {"expected": "otherwise: refuted", "met": False, "found": "supported"},
    {"expected": "strong: supported", "met": True, "found": "supported, by 30"},
    {"expected": "absent: supported", "met": False, "found": "no such finding"},
]
RECORD: dict[str, Any] = {
    "casebook": {"name": "planted", "stages": STAGES, "expect": EXPECT},
    "expected": {"of": "a model", "differs_in": ["seed"], "results": RESULTS},
    "stages": {"read": {"num_units": len(UNITS)}, "ablate": {"skipped": "no head was found"}},
    "failed": [{"unit": "one", "condition": "c", "sample": "s", "why": f"out of memory {HOSTILE}"}],
    "command": "probe run planted --out here",
}


def run_of(path: Path, findings: list[Finding], **record: Any) -> Path:
    write_run(path, UNITS, **(RECORD | record))
    write_json(path / "findings.json", [each.to_json() for each in findings])
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("found") / "run", FOUND)


def shown(run: Path, search: str = "") -> list[Any]:
    return list(overview(Opened([run])).shown(search)[1])


def titles(markup: str) -> list[str]:
    return re.findall(r"<article.*?<h2><a [^>]*>(.*?)</a></h2>", markup)


def test_the_cards_stand_most_surprising_first_and_so_does_the_first_paint(run: Path) -> None:
    page = plain_html(shown(run))
    assert titles(page) == [f"{name} it is" for name in WANTED]
    assert ORDER in unescape(page)
    assert titles(first_paint(Opened([run]), "")) == titles(page)
    assert page in first_paint(Opened([run]), "run")


@pytest.mark.parametrize("sigmas", [0.5, 2.0, 30.0])
def test_an_effect_is_counted_in_standard_errors(sigmas: float) -> None:
    assert effect_in_standard_errors(finding("x", sigmas=sigmas)) == pytest.approx(sigmas, rel=1e-6)
    control = Measurement(name="c", value=10 - sigmas * 2**0.5, interval=FOUND[0].measured.interval, n=9)
    moved = control.interval.model_copy(update={"low": control.value - 1.959964, "high": control.value + 1.959964})  # type: ignore
    control = control.model_copy(update={"interval": moved})
    assert effect_in_standard_errors(finding("x", control=control)) == pytest.approx(sigmas, rel=1e-6)


def test_a_p_value_alone_counts_as_the_deviate_of_the_normal() -> None:
    test = Comparison(name="a test", p_value=0.0455002639, n=9)
    assert effect_in_standard_errors(finding("x", comparison=test)) == pytest.approx(2.0, rel=1e-6)
    assert effect_in_standard_errors(finding("x")) is None


def test_a_verdict_is_a_sign_and_a_word(run: Path) -> None:
    page = plain_html(shown(run))
    assert [page.count(f">{sign}<") for sign in ("✓ supported", "✗ refuted", "? inconclusive")] == [4, 1, 1]


def test_what_was_expected_failed_or_left_out_is_said_as_the_report_says_it(run: Path) -> None:
    page = unescape(plain_html(shown(run)))
    assert "1 of 3 expectations of a model met; this run differs in seed" in page
    assert "✗ not as expected: otherwise: refuted; found: supported" in page
    assert "✓ as expected" in page
    assert "Stage ablate was not played: no head was found" in page
    assert "1 unit failed. They are in no number here." in page
    table = next(item for item in shown(run) if isinstance(item, Grid))
    assert [row[1] for row in table.table] == ["✗ not met", "✓ met", "✗ not met"]


def test_hostile_words_are_text_before_any_script_has_run(run: Path, tmp_path: Path) -> None:
    hostile = run_of(tmp_path / "run", [finding("x", headline=HOSTILE, claim=HOSTILE)])
    for page in (first_paint(Opened([hostile]), ""), first_paint(Opened([run]), HOSTILE)):
        assert "<script" not in page
        assert "\u202e" not in page
        assert "&lt;script&gt;" in page


def test_the_evidence_is_figures_numbers_notes_suggestions_and_units(tmp_path: Path) -> None:
    suggested = Suggestion(intervention="ablate_heads", fields={"heads": [[2, 5]]}, reason="They carry it.")
    one = finding("x", suggests=(suggested,), notes=("a note",), columns=("a", "b"), table=((1, "=1"),), name="called")
    run = run_of(tmp_path / "run", [one])
    items = shown(run, "?finding=called")
    grids = {item.name: item for item in items if isinstance(item, Grid)}
    assert grids["numbers"].table[0][:4] == ("how much", 10.0, 10 - 1.959964, 10 + 1.959964)
    assert grids["table"].table == [(1, "=1")]
    assert [row[-1] for row in grids["units"].table] == list(one.evidence)
    assert grids["units"].follow["attention"] == "/attention?run=run&unit={unit}"
    page = unescape(plain_html([item for item in items if not isinstance(item, Panel | Grid)]))
    assert "a note" in page
    lines = re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.S)
    assert yaml.safe_load(lines[0])["conditions"]["suggested"]["intervention"] == {"ablate_heads": {"heads": [[2, 5]]}}
    assert "probe.ablate_heads(heads=[[2, 5]])" in lines[1]
    assert "no finding 'nothing'; it has called" in str(shown(run, "?finding=nothing"))


def test_the_casebook_that_is_shown_plays_as_the_one_that_was_played(specimen: Path, tmp_path: Path) -> None:
    from probe.casebook import load

    record = json.loads((specimen / "run.json").read_bytes())
    _, items = provenance(Opened([specimen])).shown("")
    page = unescape(plain_html(list(items)))
    text = casebook_yaml(record)
    assert text in page
    (tmp_path / "casebook.yaml").write_text(text, "utf-8")
    assert load(tmp_path / "casebook.yaml").model_dump(mode="json") == record["casebook"]
    for said in (
        record["provenance"]["weights_sha256"],
        record["provenance"]["versions"]["torch"],
        *record["success_rules"],
    ):
        assert said in page


def test_the_command_can_be_copied_from_the_page(run: Path) -> None:
    _, items = provenance(Opened([run])).shown("")
    page = plain_html(list(items))
    assert '<pre class="explorer-lines" aria-label="the command">probe run planted --out here</pre>' in page


def test_in_a_browser_a_card_opens_its_evidence_and_a_unit_its_page(run: Path, browser: Any, serve: Any) -> None:
    with serve(run) as address:
        browser.get(f"{address}/overview")
        wait(browser, lambda b: b.find_elements("css selector", "#overview-content .explorer-card h2 a"))[0].click()
        wait(browser, lambda b: "finding=otherwise" in b.current_url)
        link = wait(browser, lambda b: b.find_elements("css selector", "#overview-units .ag-cell a[href]"))[0]
        browser.execute_script("arguments[0].click()", link)
        wait(browser, lambda b: "/attention?run=run&unit=" in b.current_url)
        assert browser.execute_script("return window.ran") is None


def test_findings_are_known_by_stage_and_name() -> None:
    twice = [finding("x"), finding("y"), finding("x")]
    casebook = {
        "stages": [{"name": "one", "analyses": ["x", {"y": {"half": "find"}}]}, {"name": "two", "analyses": ["x"]}],
        "expect": [{"analysis": "x", "stage": "two"}],
    }
    result = {"expected": "x in two", "met": True, "found": "so"}
    record = {"casebook": casebook, "expected": {"of": "m", "differs_in": [], "results": [result]}}
    told = {each.index: each.expected for each in by_surprise(twice, record)}
    assert told == {0: (), 1: (), 2: (result,)}

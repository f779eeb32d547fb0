"""The report: one file that shows what it is given, runs only its own scripts, and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from probe import chart
from probe.finding import Comparison, Figure, Finding, Interval, Measurement, Suggestion
from probe.reporting.report import report_html, write_report
from probe.visible import visible

HOSTILE = [
    "</script><script>window.owned=1</script>",
    "<img src=x onerror=window.owned=1>",
    "{{7*7}}${7*7}<%= 7*7 %>#{7*7}",
    "%{x} %{customdata[0]}",
    "<b>x</b><s></s><br><a href='javascript:window.owned=1'>y</a>",
    "line\u2028separator\u2029paragraph",
    "right-to-left \u202egnirts\u202c isolate \u2066x\u2069",
    "\x1b[31mred\x07\x00",
    "'\"><svg/onload=window.owned=1>",
    "]]><!--<script>",
    "&lt;b&gt; &amp;amp; &copy;",
]


class FakeRun:
    """What the report reads of a run."""

    def __init__(self, findings: list[Finding], record: dict[str, Any], failed: dict[str, str] | None = None) -> None:
        self.path = Path("runs/first-look-needle")
        self.record = record
        self._findings = findings
        self.units = {unit: {"failed": reason} for unit, reason in (failed or {}).items()}

    def findings(self) -> list[Finding]:
        return self._findings


RECORD: dict[str, Any] = {
    "format": 1,
    "status": "complete",
    "casebook": {
        "name": "first-look",
        "question": "From what length does the model fail?",
        "model": "needle",
        "seed": 0,
        "workload": {"needle": {"lengths": [64, 128], "depths": [0.0, 1.0], "samples": 4}},
    },
    "provenance": {
        "model": "needle",
        "revision": None,
        "weights_sha256": "9f" * 32,
        "tokenizer_sha256": "1c" * 32,
        "dtype": "float32",
        "device": "cpu",
        "attention_implementation": "sdpa",
        "versions": {"torch": "2.13.0+cpu", "transformers": "5.23.0"},
        "python": "3.11.7",
    },
    "model_card": {"engineered": True, "phenomena": ["retrieval heads"], "trained_length": 256, "figures": {"x": 1}},
    "command": "probe run first-look",
    "stages": {},
    "failed": [],
}


def finding(**changes: Any) -> Finding:
    fields: dict[str, Any] = {
        "analysis": "effective_length",
        "question": "Up to what length does the model answer?",
        "claim": "The model answers up to 256 tokens (20 of 20 right, 95 % interval 0.83 to 1), and fails at "
        "1,024 (1 of 20).",
        "verdict": "supported",
        "measured": Measurement(
            name="effective length",
            value=256.0,
            unit="tokens",
            interval=Interval(low=256, high=256, method="Clopper-Pearson per length"),
            n=100,
            dropped=2,
        ),
        "control": Measurement(
            name="right answers without the needle",
            value=0.0,
            interval=Interval(low=0, high=0.036, method="Clopper-Pearson"),
            n=100,
        ),
        "comparison": Comparison(name="exact McNemar test, paired by sample", difference=0.98, p_value=1e-12, n=100),
        "details": (Measurement(name="right at 64 tokens", value=1.0, n=20),),
        "columns": ("length", "accuracy"),
        "table": ((64, 1.0), (1024, None)),
        "figures": (heatmap(),),
        "suggests": (
            Suggestion(
                intervention="ablate_heads", fields={"heads": [[2, 2], [2, 5]]}, reason="They carry the answer."
            ),
        ),
        "notes": ("Two units were left out: the needle did not fit.",),
        "definition": "The longest length at which the lower end of the interval is above 0.75.",
        "source": "this toolkit's own",
    }
    return Finding(**(fields | changes))


def heatmap(text: str = "layer 0", **changes: Any) -> Figure:
    data = chart.heatmap([chart.shown(text)], ["head 0"], [[0.5]], unit="score", hover="%{x}: %{z}")
    layout = {"xaxis": chart.axis("layer"), "yaxis": chart.axis("head")}
    fields: dict[str, Any] = {"name": "grid", "title": text, "caption": "Blue is right."}
    return chart.figure(**(fields | changes), data=[data], layout=layout)


class Page(HTMLParser):
    """The document as a parser sees it: scripts by type, attributes, text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: dict[str, str | None] | None = None
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._open = dict(attrs)
            self.scripts.append((self._open, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        else:
            self.text.append(data)

    def meta(self, name: str) -> str:
        return next(a["content"] or "" for t, a in self.tags if t == "meta" and a.get("http-equiv") == name)


def page(*findings: Finding, record: dict[str, Any] | None = None, failed: dict[str, str] | None = None) -> Page:
    return Page(report_html(FakeRun(list(findings), record or RECORD, failed)))


def test_policy_admits_exactly_the_scripts_of_the_page() -> None:
    document = page(finding())
    policy = document.meta("Content-Security-Policy")
    programs = [text for attributes, text in document.scripts if attributes.get("type") != "application/json"]
    hashes = {"sha256-" + base64.b64encode(hashlib.sha256(p.encode()).digest()).decode() for p in programs}
    assert set(re.findall(r"sha256-[A-Za-z0-9+/=]+", policy)) == hashes
    assert len(programs) == 2
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert not re.search(r"script-src[^;]*unsafe-inline", policy)


def test_policy_comes_before_anything_that_could_load() -> None:
    tags = [tag for tag, _ in page(finding()).tags]
    assert tags[:4] == ["html", "head", "meta", "meta"]


def test_nothing_is_fetched() -> None:
    document = page(finding())
    sources = [(t, k, v) for t, a in document.tags for k, v in a.items() if k in ("src", "srcset", "data", "action")]
    links = [v for _, a in document.tags for k, v in a.items() if k == "href"]
    assert sources == []
    assert all(link is not None and link.startswith("#") for link in links)
    assert not [tag for tag, _ in document.tags if tag in ("link", "iframe", "object", "embed", "base", "img")]


def test_plotly_is_inside_once_and_only_where_there_is_a_figure() -> None:
    assert report_html(FakeRun([finding(), finding()], RECORD)).count("plotly.js v") == 1
    assert len(report_html(FakeRun([finding(figures=())], RECORD))) < 100_000


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_shown_exactly_wherever_it_stands(text: str) -> None:
    record = RECORD | {"provenance": {"model": text, "revision": text}, "model_card": {text: text}, "command": text}
    hostile = finding(
        question=text,
        claim=text,
        notes=(text,),
        definition=text,
        source=text,
        columns=(text, "b"),
        table=((text, 1.0),),
        suggests=(Suggestion(intervention=text, fields={text: text}, reason=text),),
        figures=(heatmap(text, caption=text),),
    )
    document = page(hostile, record=record, failed={text: text})
    expected = visible(text)
    assert "".join(document.text).count(expected) >= 12
    assert not [tag for tag, _ in document.tags if tag in ("img", "svg", "s", "iframe")]
    assert len(document.scripts) == 3
    assert {name for _, attributes in document.tags for name in attributes} <= {
        "lang", "charset", "http-equiv", "content", "name", "class", "title", "href", "id", "data-figure", "role",
        "aria-label", "type",
    }  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_embedded_figures_cannot_leave_their_element(text: str) -> None:
    document = page(finding(figures=(heatmap(text),)))
    (raw,) = [text for attributes, text in document.scripts if attributes.get("type") == "application/json"]
    assert raw.isascii()
    assert not set("<>&") & set(raw)
    (figure,) = json.loads(raw)
    # What plotly draws is the label with its entities resolved: exactly the text, hidden characters made visible.
    assert html.unescape(figure["data"][0]["x"][0]) == visible(text)


def test_a_figure_keeps_plain_markup_and_loses_the_rest() -> None:
    raw = {
        "data": [{"type": "scatter", "x": [1.0, math.inf], "y": [math.nan, 2.0], "text": ["<a href='//x'>y</a>"]}],
        "layout": {"title": {"text": "t"}, "xaxis": {"title": {"text": "<b>bold</b><br>x &lt; y"}}, "template": {}},
    }
    document = page(finding(figures=(Figure(name="f", title="t", caption="c", plotly=raw),)))
    (figure,) = json.loads(next(text for attributes, text in document.scripts if attributes))
    assert figure["layout"]["xaxis"]["title"]["text"] == "<b>bold</b><br>x &lt; y"
    assert figure["data"][0]["text"] == ["&lt;a href='//x'&gt;y&lt;/a&gt;"]
    assert figure["data"][0]["x"] == [1.0, None]
    assert figure["data"][0]["y"] == [None, 2.0]
    assert "title" not in figure["layout"]


def test_a_value_that_was_not_measured_is_never_in_the_headline() -> None:
    broken = finding(analysis="effective_length", claim="BROKEN", measured=Measurement(name="x", value=None, n=0))
    sound = finding(analysis="attention_sinks", claim="SOUND")
    text = "".join(page(broken, sound).text)
    headline = text[: text.index("Question")]
    assert "SOUND" in headline
    assert "BROKEN" not in headline
    assert "Not measured (n = 0)" in text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_measurement_that_is_not_finite_cannot_be_made(value: float) -> None:
    with pytest.raises(ValidationError):
        Measurement(name="x", value=value, n=1)
    with pytest.raises(ValidationError):
        Interval(low=0, high=value, method="m")


def test_what_is_inconclusive_is_not_in_the_headline() -> None:
    text = "".join(page(finding(verdict="inconclusive", claim="MAYBE")).text)
    assert "Nothing could be settled" in text
    assert "MAYBE" not in text[: text.index("Question")]
    assert "MAYBE" in text


def test_the_headline_starts_with_what_is_wrong_whatever_the_order() -> None:
    names = ["attention_sinks", "other", "retrieval_heads", "head_ablation", "position_bias", "effective_length"]
    text = "".join(page(*[finding(analysis=name, claim=f"<{name}>") for name in names]).text)
    headline = text[: text.index("Question")]
    said = re.findall(r"<(\w+)>", headline)
    assert said == ["effective_length", "head_ablation", "retrieval_heads", "position_bias"]


def test_failed_units_are_named_with_their_reason() -> None:
    record = RECORD | {"failed": [{"unit": "u1", "condition": "c", "sample": "s", "why": "out of memory"}]}
    text = "".join(page(finding(), record=record, failed={"u2": "layer 3: NaN at position 12"}).text)
    assert "This report is partial: 2 units failed." in text
    assert "u1: out of memory" in text
    assert "u2: layer 3: NaN at position 12" in text


def test_units_that_failed_alike_are_one_line() -> None:
    text = "".join(page(finding(), failed={f"u{i}": f"layer {i}: NaN" for i in range(24)} | {"v": "odd"}).text)
    assert "24 units failed" not in text
    assert "This report is partial: 25 units failed." in text
    assert "24 units: layer 0: NaN (first: u0)" in text
    assert "v: odd" in text


def test_the_report_ends_with_what_the_numbers_come_from() -> None:
    text = "".join(page(finding()).text)
    end = text[text.index("Where these numbers come from") :]
    for expected in (
        "needle",
        "9f" * 32,
        "1c" * 32,
        "float32",
        "cpu",
        "sdpa",
        "5.23.0",
        "engineered",
        "retrieval heads",
        "Seed",
    ):
        assert expected in end
    assert "probe run first-look" in end


def test_a_specimen_is_called_one_before_anything_else_is_read_into_it() -> None:
    assert "needle is a specimen." in "".join(page(finding()).text)
    assert "specimen" not in "".join(page(finding(), record=RECORD | {"model_card": {}}).text)


def test_a_suggestion_comes_with_what_plays_it() -> None:
    text = "".join(page(finding()).text)
    assert 'intervention: {"ablate_heads": {"heads": [[2, 2], [2, 5]]}}' in text
    assert "with probe.ablate_heads(heads=[[2, 2], [2, 5]])(model):" in text


def test_how_sure_stands_with_the_claim() -> None:
    text = "".join(page(finding()).text)
    assert "95 % interval 256 to 256 (Clopper-Pearson per length), n = 100, 2 left out" in text
    assert "control: right answers without the needle 0 [0, 0.036] (n = 100)" in text
    assert "exact McNemar test, paired by sample: difference +0.98, p < 1e-6, n = 100" in text
    assert "95 % interval 256 to 256, n = 100, 2 left out; control 0 [0, 0.036] (n = 100); p < 1e-6." in text


def test_the_diagnosis_leads_with_the_headline() -> None:
    text = "".join(page(finding(headline="It fails at 512 tokens", claim="At 512 tokens 55 % are right.")).text)
    diagnosis = " ".join(text[: text.index("Question")].split())
    assert "It fails at 512 tokens. At 512 tokens 55 % are right." in diagnosis


def test_a_long_table_says_how_much_it_leaves_out() -> None:
    text = "".join(page(finding(table=tuple((i, 1.0) for i in range(1000)))).text)
    assert "The first 200 of 1000 rows" in text


def test_a_run_with_nothing_in_it_still_makes_a_page() -> None:
    assert "Nothing could be settled" in "".join(page().text)


def test_writing_replaces_the_file_whole(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    write_report(FakeRun([finding()], RECORD), target)
    assert target.read_text(encoding="utf-8").endswith("</html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that logs its console."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-background-networking", "--window-size=1100,1400"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


def open_page(browser: Any, folder: Path, *findings: Finding, record: dict[str, Any] | None = None) -> None:
    write_report(FakeRun(list(findings), record or RECORD), folder / "report.html")
    browser.get((folder / "report.html").as_uri())


@pytest.mark.browser
def test_in_a_browser_nothing_planted_runs_and_text_is_shown_exactly(browser: Any, tmp_path: Path) -> None:
    findings = [finding(claim=text, question=text, figures=(heatmap(text),)) for text in HOSTILE]
    open_page(browser, tmp_path, *findings, record=RECORD | {"provenance": {"model": HOSTILE[0]}})
    assert browser.execute_script("return document.documentElement.dataset.drawn") == "true"
    assert browser.execute_script("return window.owned") is None
    claims = [element.get_attribute("textContent") for element in browser.find_elements("css selector", ".claim bdi")]
    assert claims == [visible(text) for text in HOSTILE]
    ticks = [t.get_attribute("textContent") for t in browser.find_elements("css selector", ".plot .xtick text")]
    # SVG text draws spaces as no-break spaces.
    assert [tick.replace("\xa0", " ") for tick in ticks] == [visible(text) for text in HOSTILE]
    assert browser.find_elements("css selector", ".plot svg a") == []


@pytest.mark.browser
def test_in_a_browser_a_planted_script_is_blocked(browser: Any, tmp_path: Path) -> None:
    target = tmp_path / "planted.html"
    document = report_html(FakeRun([finding()], RECORD))
    target.write_text(document.replace("</main>", "<script>window.owned=1</script></main>"), encoding="utf-8")
    browser.get(target.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.drawn") == "true"
    assert browser.execute_script("return window.owned") is None


@pytest.mark.browser
def test_in_a_browser_every_figure_is_drawn_and_nothing_is_requested(browser: Any, tmp_path: Path) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    open_page(browser, tmp_path, finding(), finding(figures=(heatmap(), heatmap())))
    assert len(browser.find_elements("css selector", ".plot .main-svg .heatmaplayer image")) == 3
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {(tmp_path / "report.html").as_uri()}


def test_what_an_analysis_says_is_never_cut() -> None:
    """A claim over eighteen conditions, and the caption that says in words what their figure draws."""
    said = "; ".join(f"condition-{i} (100 %, +0 [-17.6, 17.6] points, q = 1)" for i in range(18))
    document = page(finding(claim=said, notes=(said,), definition=said, figures=(heatmap("a", caption=said),)))
    assert "".join(document.text).count(said) >= 4

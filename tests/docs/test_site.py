"""The site builds without a warning and without a network, and has a page for whatever there is."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

import probe
from probe import discovery
from probe.kernels import statistic

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {
    "analyses": discovery.names("analyses"),
    "statistics": statistic.names(),
    "interventions": discovery.names("hooks"),
    "workloads": discovery.names("workloads"),
    "casebooks": discovery.names("casebooks"),
    "published": discovery.names("published"),
    "specimens": sorted(path.parent.name for path in (ROOT / "casebooks/specimens").glob("*/config.json")),
}


SHOWN = ("index", "start", "generated/api", "generated/interventions/yarn", "generated/statistics/received_mass")
"""Pages that are written as HTML with the fast tests; all are read, and all their references resolved."""

BUILD = """
import sys
from sphinx.cmd.build import build_main
docs, out, *pages = sys.argv[1:]
strict, options = ["-W", "--keep-going"], ["-q", "-d", out + "/state", docs, out]
# Of some pages alone Sphinx warns that what can be searched is incomplete.
sys.exit(build_main(["-b", "dummy", *strict, *options]) or build_main([*([] if pages else strict), *options, *pages]))
"""


def build(out: Path, pages: tuple[str, ...]) -> Path:
    """Build the site into a folder, with a proxy that is not there; without pages all of them are written."""
    command = [sys.executable, "-c", BUILD, str(DOCS), str(out), *(str(DOCS / f"{page}.md") for page in pages)]
    environment = {**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once however many processes share the tests."""
    mine = tmp_path_factory.getbasetemp()
    shared = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "site"
    with FileLock(f"{shared}.lock"):
        if not (shared / "index.html").is_file():
            build(shared, SHOWN)
    return shared


def text(page: Path) -> str:
    """Return what a page says, without its tags, white space as single spaces."""
    return " ".join(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8")).split())


def test_there_is_a_page_for_whatever_there_is(site: Path) -> None:
    for folder, names in PAGES.items():
        there = {page.stem for page in (DOCS / "generated" / folder).glob("*.md")} - {"index"}
        assert there == {*names}, folder


def test_an_analysis_page_has_its_question_its_figures_and_what_it_does_not_mean(site: Path) -> None:
    nulls = {each["analysis"]: each for each in json.loads((DOCS / "nulls.json").read_text(encoding="utf-8"))}
    for name in PAGES["analyses"]:
        shown = (DOCS / "generated" / "analyses" / f"{name}.md").read_text(encoding="utf-8")
        assert discovery.get("analyses", name).question in shown
        assert "## What it does not mean\n\n" in shown
        for each in nulls.get(name, {"nulls": []})["nulls"]:
            assert f"{100 * each['upper_bound']:.1f} %" in shown


def test_a_field_stands_with_its_default_and_what_it_is(site: Path) -> None:
    shown = text(site / "generated" / "interventions" / "yarn.html")
    assert "beta_fast float 32.0 Turns over the training length from which on a pair is left as it is" in shown
    shown = text(site / "generated" / "statistics" / "received_mass.html")
    assert "received_mass_num_queries" in shown
    assert "attention_sinks" in shown


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    shown = (DOCS / "generated" / "api.md").read_text(encoding="utf-8")
    assert {name for name in probe._public() if f"probe.{name}" not in shown} == set()
    assert "probe.Trace.window(layer: int, head: int, *, queries: slice" in shown


def asked_elsewhere(site: Path) -> list[str]:
    """Return what pages load from other places than the site."""
    pattern = re.compile(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(?:https?:)?//[^"]+"')
    return [found for page in site.rglob("*.html") for found in pattern.findall(page.read_text(encoding="utf-8"))]


def test_no_page_asks_for_anything_from_elsewhere(site: Path) -> None:
    assert (site / "index.html").is_file()
    assert not asked_elsewhere(site)


@pytest.mark.slow
def test_the_whole_site_is_written(tmp_path: Path) -> None:
    out = build(tmp_path, ())
    for folder, names in PAGES.items():
        assert {page.stem for page in (out / "generated" / folder).glob("*.html")} == {*names, "index"}
    assert not asked_elsewhere(out)


@pytest.mark.parametrize("name", PAGES["analyses"])
def test_an_analysis_says_when_it_is_supported_or_refuted_and_what_neither_means(name: str) -> None:
    paragraphs = inspect.cleandoc(discovery.get("analyses", name).__doc__ or "").split("\n\n")
    said = " ".join(paragraphs)
    assert re.search(r"\bsupported\b", said, re.IGNORECASE)
    assert re.search(r"\brefuted\b", said, re.IGNORECASE)
    (apart,) = [each for each in paragraphs if each.startswith("What it does not mean:")]
    assert len(apart.split()) >= 25


def test_every_work_that_is_cited_says_how_its_definition_was_read() -> None:
    known = json.loads((DOCS / "methods.json").read_text(encoding="utf-8"))
    for room in ("analyses", "kernels", "hooks", "workloads"):
        for name in PAGES["statistics"] if room == "kernels" else discovery.names(room):
            found = discovery.get(room, name)
            cited = re.findall(r"\b(\d{4}\.\d{5})\b", f"{found.__doc__} {getattr(found, 'source', '')}")
            assert {*cited} <= known.keys(), name

"""How well a thing is verified: read from what the project keeps of its own measurements, never written by hand."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from probe import discovery
from probe.casebook import Casebook, load

from .wording import code, table

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_ARXIV = re.compile(r"\b(\d{4}\.\d{5})\b")


@functools.cache
def _nulls() -> dict[str, Any]:
    return {each["analysis"]: each for each in json.loads((DOCS / "nulls.json").read_text(encoding="utf-8"))}


@functools.cache
def methods() -> dict[str, Any]:
    """Return how far the definition of each published method was read, by its number on arXiv."""
    found: dict[str, Any] = json.loads((DOCS / "methods.json").read_text(encoding="utf-8"))
    return found


@functools.cache
def casebooks(room: str = "casebooks") -> dict[str, Casebook]:
    """Return the casebooks that ship, by name; of room `published` those of published figures."""
    prefix = "published/" if room == "published" else ""
    return {name: load(prefix + name) for name in discovery.names(room)}


def cited(*texts: str | None) -> list[str]:
    """Return the numbers on arXiv that texts name, each once, in their order."""
    return list(dict.fromkeys(number for text in texts for number in _ARXIV.findall(text or "")))


def sources_table(*texts: str | None) -> str:
    """Return a table of the works that texts cite, and how far each definition was read."""
    return table(("work", "its definition was read from", "not verified"), [source(each) for each in cited(*texts)])


def source(number: str) -> tuple[str, str, str]:
    """Return the row of a work: its name with a link, how its definition was read, what was not verified."""
    known = methods()[number]
    read = ", ".join(known["read"]) or "not recorded"
    where = f" ({known['where']})" if known["where"] else ""
    return f"{known['work']}, [arXiv {number}](https://arxiv.org/abs/{number})", read + where, known["not_verified"]


def nulls(analysis: str) -> str:
    """Return what an analysis said of traces whose truth is known."""
    found = _nulls().get(analysis)
    if found is None:
        return "It has not been held against nulls and planted effects yet."
    lines = [
        table(
            ("nothing is there", "runs", "supported", "refuted", "inconclusive", "error rate, upper 95 % bound"),
            [
                (
                    each["made_of"],
                    *(str(each[key]) for key in ("n", "supported", "refuted", "inconclusive")),
                    f"{100 * each['upper_bound']:.1f} %",
                )
                for each in found["nulls"]
            ],
        ),
        f"Planted: {found['what']}",
        table(
            ("strength", "runs", "supported"),
            [(f"{each['strength']:g}", str(each["n"]), str(each["supported"])) for each in found["planted"]],
        ),
        f"Measured on {found['date']} by `python -m tests.effects`; [all analyses beside each other](../../nulls.md).",
    ]
    return "\n\n".join(lines)


def expected_of(analysis: str) -> str:
    """Return what casebooks that ship expect of an analysis on a specimen, as a table."""
    rows = []
    for name, book in casebooks().items():
        for each in book.expect:
            if each.analysis in _labels(book, analysis):
                rows.append((code(name), code(book.model), each.verdict or "", _between(each)))
    return table(("casebook", "model", "verdict", "number"), rows)


def _labels(book: Casebook, analysis: str) -> set[str]:
    from probe.stage import labelled

    asked = [labelled(each) for stage in book.stages for each in stage.analyses]
    return {label for name, _, label in asked if name == analysis} | {analysis}


def _between(each: Any) -> str:
    if each.between is None:
        return ""
    low, high = ("…" if end is None else f"{end:g}" for end in each.between)
    return f"{each.measure or 'the headline'} in [{low}, {high}]"


def published_of(analysis: str) -> str:
    """Return the published figures that ask for an analysis, with whether anybody has run them."""
    rows = [
        (f"[{name}](../published/{name}.md)", book.published.verified, book.published.state)
        for name, book in casebooks("published").items()
        if book.published is not None
        and any(analysis in ([each] if isinstance(each, str) else [*each]) for s in book.stages for each in s.analyses)
    ]
    return table(("casebook", "figure read from", "state"), rows)


def played_in(intervention: str) -> list[str]:
    """Return the casebooks in which a condition names an intervention."""
    pattern = re.compile(rf'"{intervention}"')
    return [name for name, book in casebooks().items() if pattern.search(book.model_dump_json(exclude={"question"}))]


def used_in(workload: str) -> list[str]:
    """Return the casebooks that read a workload."""
    return [name for name, book in casebooks().items() if book.workload_name == workload]


@functools.cache
def conformance() -> str:
    """Return in a sentence over how many architectures statistics were held against eager attention."""
    found = json.loads((ROOT / "probe/conformance/models.json").read_text(encoding="utf-8"))["architectures"]
    exact = [each for each in found if each["verdict"] == "exact"]
    compared = sum(way["compared"] for each in exact for way in each["ways"].values())
    return (
        f"{len(exact)} of {len(found)} entries of the [table of models](../../models.md) are exact: "
        f"{compared:,} arrays of all statistics were held against NumPy's own over the models' eager attention, in "
        "float64. The models are tiny and have random weights."
    )


def test_files(*patterns: str) -> list[str]:
    """Return the test files that are there, relative to the checkout."""
    return sorted({path.relative_to(ROOT).as_posix() for each in patterns for path in (ROOT / "tests").glob(each)})

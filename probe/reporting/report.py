"""A run as one HTML file: the diagnosis in sentences, then each finding with its figures, then where it came from.

It opens from disk and asks the network for nothing: plotly.js is inside, and a content security policy admits exactly
the scripts that were written here, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

import probe
from probe.finding import Finding, Suggestion
from probe.storage.object_path import Location, ObjectPath, location
from probe.storage.record_form import check_record
from probe.telling.certainty import certainty
from probe.telling.drawing import drawing
from probe.telling.headline import headline
from probe.telling.provenance import LABELS, again, card, flat
from probe.telling.suggested import as_python, as_yaml
from probe.telling.summary import expected_heading, failures, in_groups, model_of, named, skipped, unfinished
from probe.telling.verdicts import MEANINGS
from probe.visible import visible

if TYPE_CHECKING:
    from probe.storage.trace_store import Run

MOST_ROWS = 200
"""Rows of a table that the page shows; findings.json has them all."""
MOST_CHARACTERS = 500
"""Characters of one text in a table."""
MOST_OF_A_SENTENCE = 4000
"""Characters of a claim, a note or a caption: more than any analysis writes of a dozen conditions, none of it cut."""


def write_report(run: Run, path: str | Location) -> None:
    """Write `report_html(run)` to `path`, whole or not at all."""
    target = location(path)
    if isinstance(target, ObjectPath):
        target.write(report_html(run).encode())
        return
    unfinished = target.with_name(target.name + ".part")
    text = report_html(run)
    # Whoever wrote the folder may have put a link there, which leads out of it.
    unfinished.unlink(missing_ok=True)
    with unfinished.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
    os.replace(unfinished, target)


def report_html(run: Run) -> str:
    """Return the report of a run as one HTML document, from its record and findings. No torch, no network.

    Raises StoreCorrupt where the record is not what a run writes.
    """
    check_record(run.record, "run.json")
    findings = run.findings()
    record = run.record
    failed = failures(run)
    scripts = _scripts(any(finding.figures for finding in findings))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": _shown, "visible": _visible, "number": _number, "measured": _measured}
    return environment.get_template("report.html.j2").render(
        title=f"{named(record.get('casebook'))}: {model_of(record)}",
        casebook=named(record.get("casebook")),
        model=model_of(record),
        version=probe.__version__,
        policy=_policy(scripts),
        scripts=scripts,
        figures=_embedded([drawing(figure) for finding in findings for figure in finding.figures]),
        said=headline(findings),
        by_claim={finding.claim: finding for finding in findings},
        sections=list(_sections(findings)),
        verdicts=MEANINGS,
        num_failed=len(failed),
        failures=in_groups(failed),
        unfinished=unfinished(record),
        skipped=skipped(record),
        expected=record.get("expected"),
        expected_heading=expected_heading,
        card=card(record),
        specimen=bool((record.get("model_card") or {}).get("engineered")),
        provenance=list(_provenance(record)),
        command=again(record),
        certainty=certainty,
        most_rows=MOST_ROWS,
    )


@dataclass(frozen=True)
class _Section:
    """One finding with what the page needs to show it."""

    finding: Finding
    number: int
    first_figure: int
    snippets: list[tuple[Suggestion, str, str]]


def _sections(findings: list[Finding]) -> Iterator[_Section]:
    drawn = 0
    for number, finding in enumerate(findings, start=1):
        snippets = [(suggestion, as_yaml(suggestion), as_python(suggestion)) for suggestion in finding.suggests]
        yield _Section(finding, number, drawn, snippets)
        drawn += len(finding.figures)


def _template(name: str) -> str:
    return (files("probe.reporting") / "templates" / name).read_text(encoding="utf-8")


def _scripts(with_figures: bool) -> list[Markup]:
    """Return the scripts of the page, in order, as text that an HTML parser gives back unchanged."""
    own = _template("report.js")
    if not with_figures:
        return [Markup(own)]
    from plotly.offline import get_plotlyjs

    # A parser turns CR LF into LF before it hashes.
    texts = [get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n"), own]
    for text in texts:
        if "</script" in text.lower() or "<!--" in text:
            raise ValueError("a script of the page would end early in HTML")
    return [Markup(text) for text in texts]


def _policy(scripts: list[Markup]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _embedded(value: Any) -> Markup:
    """Return JSON that cannot leave a script element: ASCII, and no <, > or & in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _shown(value: object, most: int = MOST_OF_A_SENTENCE) -> Markup:
    """Escape text of whatever origin, hidden characters made visible, its direction kept to itself."""
    text = visible(str(value), keep="\n")
    if len(text) > most:
        text = f"{text[:most]}… ({len(text)} characters)"
    return Markup("<bdi>{}</bdi>").format(escape(text))


def _visible(value: object, keep: str = "") -> str:
    return visible(str(value), keep=keep)


def _number(value: Any) -> Markup:
    """Show a table's cell: numbers to four significant digits, nothing as a dash, anything else as text."""
    if value is None:
        return Markup("–")
    if isinstance(value, bool):
        return Markup("yes" if value else "no")
    if isinstance(value, float):
        return Markup(f"{value:.4g}" if math.isfinite(value) else "not finite")
    return _shown(value if isinstance(value, str | int) else json.dumps(value), MOST_CHARACTERS)


def _measured(value: Any) -> Markup:
    """Show a measurement: value, unit, interval."""
    if value is None:
        return Markup("–")
    if value.value is None or not math.isfinite(value.value):
        return Markup("not measured")
    unit = Markup(" {}").format(visible(value.unit)) if value.unit else Markup("")
    interval = Markup("")
    if value.interval is not None:
        interval = Markup(' <span class="interval">{}</span>').format(str(value.interval))
    return Markup("<b>{}</b>{}{}").format(f"{value.value:.3g}", unit, interval)


def _provenance(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the numbers came from, row by row."""
    provenance = record.get("provenance")
    known = provenance if isinstance(provenance, Mapping) else {}
    for key, label in LABELS.items():
        if known.get(key) is not None:
            yield label, str(known[key])
    yield from flat({key: value for key, value in known.items() if key not in LABELS})
    casebook = record.get("casebook")
    if isinstance(casebook, Mapping):
        yield "Casebook", f"{casebook.get('name', '?')}: {casebook.get('question', '')}"
        yield "Seed", str(casebook.get("seed", ""))
        yield "Workload", json.dumps(casebook.get("workload"), ensure_ascii=False)
    rules = record.get("success_rules")
    if isinstance(rules, list) and any(rules):
        yield "An answer counts as right", "; ".join(str(rule) for rule in rules if rule)
    yield "longcontext-probe", probe.__version__

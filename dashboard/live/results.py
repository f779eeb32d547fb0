"""What came of a typed prompt: both answers and losses side by side, the difference, and where to look further."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dash import dcc, html

from probe.dashboard.application.address import HEAD, LAYER, RUN, UNIT, write_address
from probe.dashboard.application.panel import problem
from probe.dashboard.live.session import Job
from probe.visible import visible

if TYPE_CHECKING:
    from probe.dashboard.application.opened import OpenedRun
    from probe.dashboard.application.page import Page


def result(job: Job, run: OpenedRun | None, made: Mapping[str, Page]) -> Any:
    """Return what is shown of one request that has ended; `run` is where what was read can be seen."""
    if job.state == "stopped":
        return html.P(f"{job.sample}: stopped; what was half read is not kept.", className="explorer-notes")
    if job.state == "refused" or run is None:
        return problem(job.words, f"{job.sample}: not read")
    difference = job.difference
    head = [html.Th(job.sample, scope="col")]
    head += [html.Th([visible(each["condition"]), _links(each, job, run, made)], scope="col") for each in job.readings]
    if difference is not None:
        head.append(html.Th(["difference", _compared(job, run, made)], scope="col", className="live-apart"))
    rows = [("answer", [visible(each["response"]) or "(empty)" for each in job.readings], _same(difference))]
    for key, words in (("answer_loss", "loss of the right answer"), ("text_loss", "loss of the prompt")):
        values = [each[key] for each in job.readings]
        if any(value is not None for value in values):
            apart = None if difference is None else difference[key]
            rows.append((f"{words}, nats per token", [_number(value) for value in values], _number(apart, signed=True)))
    if any(each["correct"] is not None for each in job.readings):
        rights = ["not judged" if e["correct"] is None else "yes" if e["correct"] else "no" for e in job.readings]
        rows.append(("right", rights, ""))
    if any(each["failed"] for each in job.readings):
        rows.append(("failed", [visible(each["failed"] or "no") for each in job.readings], ""))
    body = []
    for words, values, apart in rows:
        cells = [html.Th(words, scope="row"), *map(html.Td, values)]
        if difference is not None:
            cells.append(html.Td(apart, className="live-apart"))
        body.append(html.Tr(cells))
    notes = []
    if difference is not None and not difference["same_text"]:
        said = "The prompt itself was changed: losses of the two prompts are not of the same text."
        notes.append(html.P(said, className="explorer-notes"))
    return html.Div([html.Table([html.Thead(html.Tr(head)), html.Tbody(body)], className="live-table"), *notes])


def _links(reading: Mapping[str, Any], job: Job, run: OpenedRun, made: Mapping[str, Page]) -> Any:
    """Return links to the pages that show this reading, at the layer and head that it is about."""
    view = {RUN.name: run.name, UNIT.name: str(reading["unit"])}
    if job.asked.heads:
        view |= {LAYER.name: str(job.asked.heads[0][0]), HEAD.name: str(job.asked.heads[0][1])}
    elif job.asked.layers:
        view |= {LAYER.name: str(job.asked.layers[0])}
    links = []
    for name, page in made.items():
        shared = [control for control in page.controls if control.name in view]
        if page.live and {UNIT, LAYER} <= {*page.controls}:
            label = f"{page.title}: {visible(reading['condition'])}"
            links.append(dcc.Link(page.title, href=f"/{name}{write_address(view, shared)}", title=label))
    return html.Span(links, className="live-links")


def _compared(job: Job, run: OpenedRun, made: Mapping[str, Page]) -> Any:
    """Return a link to the page that compares the two conditions over every prompt that was read under both."""
    page = made.get("compare")
    first, second = (str(each["condition"]) for each in job.readings)
    view = {RUN.name: run.name, "condition": first, "run_b": run.name, "condition_b": second}
    there = [] if page is None else [control for control in page.controls if control.name in view]
    if len(there) < len(view):
        return ""
    link = dcc.Link("Compare", href=f"/compare{write_address(view, there)}", title=f"Compare: {visible(second)}")
    return html.Span(link, className="live-links")


def _same(difference: Mapping[str, Any] | None) -> str:
    return "" if difference is None else "the same" if difference["same_response"] else "another"


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    return (f"{value:+.3f}" if signed else f"{value:.3f}").replace("-", "−")

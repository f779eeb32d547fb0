"""What a run found, or what one would cost, on a terminal or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from probe.cost import Cost, Taken, duration, size
from probe.visible import visible

if TYPE_CHECKING:
    from probe.command.run_all import Came
    from probe.estimate import DryRun
    from probe.finding import Finding
    from probe.specimens import Compared

_MARKS = {"supported": ("✓", "green"), "refuted": ("✗", "cyan"), "inconclusive": ("?", "yellow")}
_MOST_FAILURES = 10


def print_summary(brief: Mapping[str, Any], *, as_json: bool) -> None:
    """Print `summary(run)`: each finding in one sentence with its interval, what failed, where the report lies."""
    if as_json:
        print(json.dumps(brief, indent=2))
        return
    from probe.telling.summary import Failure, expected_heading, in_groups, unfinished

    _line(f"{brief['casebook']} · {brief['model']}", style="bold")
    if unfinished(brief):
        done = "1 unit is" if brief["units"] == 1 else f"{brief['units']} units are"
        _line(f"! this run has not ended ({brief['status']}): {done} done", style="bold yellow")
        if brief["command"]:
            _line(f"  to go on: {brief['command']}", wrap=False)
    for finding in brief["findings"]:
        mark, style = _MARKS[finding["verdict"]]
        if finding["headline"]:
            _line(finding["headline"], style="bold", lead=f"{mark} ", lead_style=style)
            _line(f"  {finding['claim']}")
        else:
            _line(finding["claim"], lead=f"{mark} ", lead_style=style)
        _line(f"  {finding['certainty']}", style="dim")
    for stage in brief["skipped"]:
        _line(f"stage {stage['stage']} was not played: {stage['reason']}", lead="– ", lead_style="yellow")
    if expected := brief["expected"]:
        _line(expected_heading(expected), style="bold")
        for each in expected["results"]:
            mark, style = ("✓", "green") if each["met"] else ("✗", "bold red")
            _line(f"{each['expected']}; found {each['found']}", lead=f"  {mark} ", lead_style=style)
    failed = in_groups(Failure(**failure) for failure in brief["failed"])
    if failed:
        _line(f"! failed: {len(brief['failed'])}", style="bold red")
        for line in failed[:_MOST_FAILURES]:
            _line(f"  {line}")
        if len(failed) > _MOST_FAILURES:
            _line(f"  and {len(failed) - _MOST_FAILURES} more reasons")
    if cost := brief.get("cost"):
        said = Cost(Taken(**cost["predicted"]) if cost["predicted"] else None, Taken(**cost["actual"]))
        _line(said.sentence(), style="dim")
    if "report.html" in brief["files"]:
        _line(brief["files"]["report.html"], lead="report: ", lead_style="bold", wrap=False)


def print_finding(finding: Finding) -> None:
    """Print one finding: its claim, how sure it is, and the numbers beside it."""
    mark, style = _MARKS[finding.verdict]
    _line(finding.headline or finding.claim, style="bold", lead=f"{mark} ", lead_style=style)
    _line(f"  {finding.claim}")
    for measurement in finding.details:
        _line(f"  {measurement.name}: {measurement}")
    for note in finding.notes:
        _line(f"  {note}", style="dim")


def print_estimate(casebook: str, expected: DryRun, *, as_json: bool) -> None:
    """Print what a dry run expects: units by stage, memory, disk and time."""
    if as_json:
        print(json.dumps(dataclasses.asdict(expected), indent=2))
        return
    for stage in expected.stages:
        most = "at most " if stage.at_most else ""
        _line(f"  {stage.name}: {most}{stage.units} units, about {duration(stage.seconds)}")
    _line(
        f"{casebook}: {expected.units} units, about {duration(expected.seconds)}, "
        f"peak memory about {size(expected.peak_memory_bytes)}, disk about {size(expected.disk_bytes)}"
    )


def print_listing(rooms: Mapping[str, Mapping[str, str]], *, as_json: bool) -> None:
    """Print `listing()`: names and first sentences, room by room."""
    if as_json:
        print(json.dumps(rooms, indent=2))
        return
    width = max((len(name) for members in rooms.values() for name in members), default=0) + 2
    for i, (room, members) in enumerate(rooms.items()):
        _line(("\n" if i else "") + room, style="bold")
        for name, sentence in members.items():
            _line(sentence, lead="  " + name.ljust(width), lead_style="cyan")
        if room == "models":
            _line("  … and any Hugging Face model, by hub id or folder", style="dim")


def print_came(came: Came) -> None:
    """Print one casebook of `probe run all` as soon as it has ended."""
    mark, style = {"complete": ("✓", "green"), "does not concern the model": ("–", "yellow")}.get(
        came.status, ("!", "bold red")
    )
    verdicts = ", ".join(f"{number} {verdict}" for verdict, number in came.verdicts.items())
    said = [came.status, *([verdicts] if verdicts else []), duration(came.seconds)]
    if came.expected is not None:
        said.append(f"{came.expected - len(came.unmet)} of {came.expected} expectations met")
    _line(f"{came.casebook}: {', '.join(said)}", lead=f"{mark} ", lead_style=style)
    for line in (*([came.why] if came.why else []), *(f"not met: {each}" for each in came.unmet)):
        _line(f"  {line}")
    if came.folder is not None:
        _line(f"  {came.folder}", style="dim", wrap=False)


def print_all(came: Sequence[Came], *, as_json: bool) -> None:
    """Print what came of all casebooks, in one line each, or as JSON."""
    if as_json:
        print(json.dumps([dataclasses.asdict(each) for each in came], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("casebook", "status", "supported", "refuted", "inconclusive", "expectations met", "time"):
        table.add_column(heading, justify="left" if heading in ("casebook", "status") else "right")
    for each in came:
        verdicts = [str(each.verdicts.get(verdict, "–")) for verdict in ("supported", "refuted", "inconclusive")]
        met = "–" if each.expected is None else f"{each.expected - len(each.unmet)} of {each.expected}"
        table.add_row(each.casebook, each.status, *verdicts, met, duration(each.seconds))
    # In a file no column is cut off.
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=120)).print("", table)
    _line(f"{len(came)} casebooks, {duration(sum(each.seconds for each in came))}", style="bold")


def print_specimens(specimens: Mapping[str, Mapping[str, Any]], *, as_json: bool) -> None:
    """Print what each specimen is: its name, its card's first sentence, and how it came to be so."""
    if as_json:
        print(json.dumps(specimens, indent=2))
        return
    width = max(map(len, specimens), default=0) + 2
    for name, about in specimens.items():
        _line(about["description"], lead=name.ljust(width), lead_style="cyan")
        how = {True: "engineered", False: "emergent", None: "not said how it came to be so"}[about["engineered"]]
        facts = [", ".join(about["phenomena"]) or "no phenomenon named", how, f"{about['megabytes']} MB"]
        if about["trained_length"]:
            facts.append(f"trained at {about['trained_length']:,} tokens")
        if about["can_be_trained"]:
            facts.append(f"`probe specimens train {name} --out DIR` makes it anew")
        _line("; ".join(facts), lead=" " * width, style="dim")


def print_compared(rows: Sequence[Compared]) -> None:
    """Print each figure of a specimen trained anew beside the bounds on its card."""
    width = max((len(row.figure) for row in rows), default=0)
    for row in rows:
        value = "not measured" if row.value is None else f"{row.value:.4g}"
        mark, style = ("✓", "green") if row.within else ("✗", "bold red")
        bounds = "no bounds" if row.low is None or row.high is None else f"{row.low:g} to {row.high:g}"
        _line(f"{row.figure.ljust(width)}  {value.rjust(12)}  {bounds}", lead=f"{mark} ", lead_style=style)


def _line(text: str, *, style: str = "default", lead: str = "", lead_style: str = "default", wrap: bool = True) -> None:
    console = Console(highlight=False)
    line = Text(visible(lead), style=lead_style).append(visible(text, keep="\n"), style=style)
    console.print(line, soft_wrap=not (wrap and console.is_terminal))

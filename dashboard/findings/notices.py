"""What a reader must know before the findings: whether the run has ended, what failed, what was not played."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from dash import html

from probe.dashboard.application.copyable import copyable
from probe.dashboard.application.opened import OpenedRun
from probe.dashboard.application.panel import words
from probe.storage.trace_store import Run
from probe.telling.stages import StageProgress, command_of, how_it_ended
from probe.telling.summary import expected_heading, failures, in_groups, model_of, skipped
from probe.telling.surprise import expected_results
from probe.visible import visible

_MOST: Final = 8
"""Reasons of failures that are listed."""


def notices(run: OpenedRun) -> list[Any]:
    """Return the notices of a run, as the report says them; none where all is well."""
    return list(_notices(run))


def _notices(run: OpenedRun) -> Iterator[Any]:
    if run.trouble:
        yield _notice(
            "✗ Cannot be read any more",
            [f"{run.trouble}. What was read before is shown; it is read again as soon as it can be."],
            bad=True,
        )
    if not isinstance(run.source, Run):
        return
    record = run.record
    if run.running:
        yield _notice("… Being written", [f"{run.progress}. This page fills in by itself."], _progress(run.stages))
    elif ended := how_it_ended(run.source):
        yield _notice("■ Not finished", [ended], _progress(run.stages), _go_on(record))
    failed = failures(run.source)
    if failed:
        groups = in_groups(failed)
        more = [f"and {len(groups) - _MOST} more, see run.json"] if len(groups) > _MOST else []
        first = f"{len(failed)} unit{'' if len(failed) == 1 else 's'} failed. They are in no number here."
        yield _notice("✗ Partial", [first, *groups[:_MOST], *more], bad=True)
    for stage, reason in skipped(record):
        yield _notice("– Left out", [f"Stage {stage} was not played: {reason}"])
    for name, reason in _not_analysed(record):
        yield _notice("– Left out", [f"{name} was not made: {reason}"])
    said: list[str] = []
    card = record.get("model_card")
    if isinstance(card, Mapping) and card.get("engineered"):
        said.append(
            f"{model_of(record)} is a specimen: it was trained so that it shows this. A positive control, which proves "
            "nothing about other models."
        )
    if expected_results(record):
        said.append(f"{expected_heading(record['expected'])}.")
    if said:
        yield html.Div([words(each) for each in said])


def _notice(title: str, said: list[str], *more: Any, bad: bool = False) -> Any:
    return html.Div(
        [html.H2(title), *(html.P(visible(each, keep="\n")) for each in said), *(each for each in more if each)],
        className=f"explorer-notice{' explorer-bad' if bad else ''}",
        role="status",
    )


def _progress(stages: list[StageProgress]) -> Any:
    """Return a bar for each stage; one whose number of units is not known yet has words alone."""
    rows = []
    for stage in stages:
        said = visible(str(stage))
        bar = None
        if stage.num_planned and not stage.skipped:
            # What is done may have been read under an earlier plan, and is never more than all.
            done = min(stage.num_done, stage.num_planned)
            bar = html.Progress(value=str(done), max=str(stage.num_planned), **{"aria-label": said})
        rows.append(html.Li([html.Span(said), bar]))
    return html.Ul(rows, className="explorer-stages") if rows else None


def _go_on(record: Mapping[str, Any]) -> Any:
    command = command_of(record)
    if not command:
        return html.P("To go on, call probe.run with the same casebook, model and folder (out=…) again.")
    return html.Div([html.P("To go on, run the same command again:"), copyable(command, "the command that goes on")])


def _not_analysed(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    stages = record.get("stages")
    for facts in stages.values() if isinstance(stages, Mapping) else ():
        missing = facts.get("not_analysed") if isinstance(facts, Mapping) else None
        for name, reason in missing.items() if isinstance(missing, Mapping) else ():
            yield str(name), str(reason)

"""The command `probe scores`: a run's retrieval scores held against a published score file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from probe.command import completing
from probe.command.exits import exits
from probe.command.numbers import whole_numbers
from probe.command.places import place


def scores(
    context: typer.Context,
    run: Annotated[
        Any,
        typer.Argument(
            parser=place,
            metavar="PATH",
            autocompletion=completing.runs,
            help="Folder or URL of a run in which retrieval heads were looked for.",
        ),
    ],
    file: Annotated[Path, typer.Argument(help='Score file: {"layer-head": [a score for every instance]}.')],
    top: Annotated[str, typer.Option(help="How many top heads are compared, e.g. 10,30.")] = "10,30",
    as_json: Annotated[bool, typer.Option("--json", help="Print the finding as JSON.")] = False,
) -> None:
    """Compare a run's retrieval scores with a score file as Wu et al. 2024 publish them."""
    with exits(debug=context.obj):
        from probe.command.terminal_summary import print_finding
        from probe.score_agreement import compare_scores
        from probe.storage import trace_store

        finding = compare_scores(trace_store.open(run), file, top=whole_numbers("--top", top) or ())
        if as_json:
            print(json.dumps(finding.to_json(), indent=2))
        else:
            print_finding(finding)

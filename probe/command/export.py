"""The command `probe export`: a run's or a trace's arrays in another tool's form."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from probe.command import completing
from probe.command.exits import exits
from probe.command.numbers import whole_numbers
from probe.command.places import place
from probe.errors import UsageError

if TYPE_CHECKING:
    from probe.storage.object_path import Location
    from probe.storage.trace_store import Trace


_HEAD_GATES: Final = "duo_attention"


def export(
    context: typer.Context,
    source: Annotated[
        Any,
        typer.Argument(
            parser=place,
            metavar="PATH",
            autocompletion=completing.runs,
            help="Folder or URL of a run, of a trace, or of one unit of a run.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; one file or folder for each trace goes into it.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="netcdf, csv, safetensors or duo_attention.",
            autocompletion=completing.one_of(completing.FORMATS),
        ),
    ] = "netcdf",
    layers: Annotated[str | None, typer.Option(help="Layers alone, e.g. 0,5.")] = None,
    heads: Annotated[str | None, typer.Option(help="Query heads alone, e.g. 2,7.")] = None,
    positions: Annotated[str | None, typer.Option(help="Positions alone, e.g. 0:4096.")] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="What was kept of this layer alone, vectors too.")] = None,
) -> None:
    """Write arrays as NetCDF, CSV or safetensors, and what each trace is as traces.csv.

    As duo_attention: which key-value heads retrieve, a folder as DuoAttention and kvpress read it.
    """
    with exits(debug=context.obj):
        from probe.storage import trace_store
        from probe.storage.export import SUFFIXES

        if form == _HEAD_GATES:
            if any(each is not None for each in (layers, heads, positions, layer)):
                raise UsageError(f"--format {form} is of all heads: leave out --layers, --heads, --positions, --layer")
            _write_gates(source, out)
            return
        if form not in SUFFIXES:
            forms = ", ".join((*SUFFIXES, _HEAD_GATES))
            raise UsageError(f"there is no form {form!r} to export to; there are {forms}")
        selected: dict[str, Any] = {"layer": layer, "positions": _slice(positions)}
        for name, text in (("layers", layers), ("heads", heads)):
            selected[name] = whole_numbers(f"--{name}", text, least=0)
        if out.exists():
            raise UsageError(f"{out} exists; it stays as it is")
        opened = trace_store.open(source)
        traces = [opened] if isinstance(opened, trace_store.Trace) else list(opened.traces())
        out.mkdir(parents=True)
        _write_index(out / "traces.csv", traces, SUFFIXES[form])
        for trace in traces:
            trace.export(out / f"{trace.unit}{SUFFIXES[form]}", form, **selected)
        print(f"{len(traces)} {'trace' if len(traces) == 1 else 'traces'} in {out}")


def _write_gates(source: Location, out: Path) -> None:
    from probe.head_gates import write_head_gates
    from probe.storage import trace_store

    whole, num_heads = write_head_gates(trace_store.open(source), out)
    print(
        f"{whole} of {num_heads} key-value heads retrieve (score above 0.1); sparsity and sizes: {out / 'config.json'}"
    )


def _write_index(path: Path, traces: list[Trace], suffix: str) -> None:
    """Write what each trace is: its file, its condition, its sample, and how well it was answered."""
    from probe.storage.csv_table import cell

    with path.open("x", newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "stage", "condition", "role", "sample", "tokens", "correct", "answer_loss", "failed"])
        for trace in traces:
            outcome = trace.outcome
            about = [trace.stage, trace.condition, trace.facts.get("role"), trace.sample.name, len(trace.sample)]
            said = [None] * 3 if outcome is None else [outcome.correct, outcome.answer_loss, outcome.failed]
            rows.writerow([cell(value) for value in (f"{trace.unit}{suffix}", *about, *said)])


def _slice(text: str | None) -> slice | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(":")]
    if len(parts) != 2 or any(part and not (part.isascii() and part.isdigit() and len(part) < 19) for part in parts):
        raise UsageError(f"--positions: expected two positions such as 0:4096, got {text!r}")
    start, stop = (int(part) if part else None for part in parts)
    return slice(start, stop)

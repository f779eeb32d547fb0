"""The command `probe bench`: what exact statistics cost on this machine, beside eager attention and SDPA."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe.command import completing
from probe.command.exits import exits, stops
from probe.command.numbers import whole_numbers
from probe.errors import UsageError

if TYPE_CHECKING:
    from probe.benchmark.result import Bench


WIDTH_OF_A_FILE = 120


def bench(
    context: typer.Context,
    lengths: Annotated[str | None, typer.Option(help="Tokens, e.g. 1024,4096,16384.")] = None,
    statistics: Annotated[
        str,
        typer.Option(
            help="core, five, each (every one of core alone), or names of single ones, with commas.",
            autocompletion=completing.statistics,
        ),
    ] = "core,five",
    engines: Annotated[
        str | None, typer.Option(help="The scan's implementations, with commas; all that run here if not given.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="scan or model: one of the two parts alone.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Heads of the layer.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Its key heads.")] = None,
    head_dim: Annotated[int | None, typer.Option(min=1, help="Width of its heads.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Specimen, hub id or folder; random weights if not given.", autocompletion=completing.models),
    ] = None,
    model_shape: Annotated[
        str | None,
        typer.Option(
            help="Llama shape of random weights: small, 1b or 8b.",
            autocompletion=completing.one_of(("small", "1b", "8b")),
        ),
    ] = None,
    chunk_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt at once in a tracing.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads on a CPU.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Most timed runs of each measurement.")] = 5,
    enough_seconds: Annotated[
        float, typer.Option(min=0, help="No further run of a measurement begins after as many seconds of it.")
    ] = 5.0,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write everything raw, every repeat, into this file.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    from_path: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing: show what --json wrote before.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Put the tables between the marks of this document, e.g. README.md.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the tables.")] = False,
) -> None:
    """Measure what statistics cost here: eager n × n, SDPA alone, our scan, and a model untraced and traced."""
    options: dict[str, Any] = {
        "lengths": lengths,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "engines": engines,
        "only": only,
        "model": model,
        "model_shape": model_shape,
        "chunk_tokens": chunk_tokens,
    }
    settings: dict[str, Any] = {"statistics": statistics, "repeats": repeats, "enough_seconds": enough_seconds}
    with exits(debug=context.obj):
        if from_path is not None:
            if json_path is not None or any(value is not None for value in options.values()):
                raise UsageError("--from shows what was measured before; only --markdown and --into go with it")
            from probe.benchmark.stored import read_bench

            result = read_bench(from_path)
        else:
            options["lengths"] = whole_numbers("--lengths", lengths)
            result = _measured(options | settings, json_path, quiet)
        _show(result, as_markdown, into)


def _measured(options: dict[str, Any], json_path: Path | None, quiet: bool) -> Bench:
    from rich.console import Console

    from probe.command.terminal_progress import terminal_progress

    progress = terminal_progress(Console(stderr=True), quiet=quiet)
    lost = "nothing is kept without --json" if json_path is None else f"what was measured is in {json_path}"
    with stops(progress, None, lost):
        from probe.benchmark.ladder import climb
        from probe.benchmark.planning import Asked, plan_of
        from probe.benchmark.stored import check_place, write_bench

        given = {name: value for name, value in options.items() if value is not None}
        command = _command(given)
        for name in ("statistics", "engines"):
            if name in given:
                given[name] = [part.strip() for part in given[name].split(",")]
        plan = plan_of(Asked(**given))
        if json_path is None:
            return climb(plan, command=command, progress=progress)
        place = json_path
        check_place(place)
        return climb(plan, command=command, progress=progress, so_far=lambda bench: write_bench(place, bench))


def _show(result: Bench, as_markdown: bool, into: Path | None) -> None:
    from rich.console import Console

    from probe.benchmark.rendering import markdown, print_tables, write_between_marks

    if into is not None:
        write_between_marks(into, result)
    if as_markdown:
        print(markdown(result), end="")
    elif into is None:
        console = Console()
        # A file or a pipe has no width of its own, and rich would take 80 columns for it.
        print_tables(result, console if console.is_terminal else Console(width=WIDTH_OF_A_FILE))


def _command(given: dict[str, Any]) -> str:
    """Return the command line that measures the same; where the result went, and a folder's path, are left out."""
    defaults = {"statistics": "core,five", "repeats": 5, "enough_seconds": 5.0}
    words = ["probe", "bench"]
    for name, value in given.items():
        if defaults.get(name) != value:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            text = Path(text).name if name == "model" and Path(text).is_dir() else text
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)

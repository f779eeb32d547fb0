"""The command `probe conformance`: architectures against their own eager attention, and the table of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probe.command import completing
from probe.command.exits import exits


def conformance(
    context: typer.Context,
    architectures: Annotated[
        list[str] | None, typer.Argument(help="Model types, or variants, of the table; all if none is given.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="One backend alone (`probe list backends`); those of the table if not given.",
            autocompletion=completing.backends,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the JSON here.")] = None,
    page_path: Annotated[Path | None, typer.Option("--page", help="Write the page of models here.")] = None,
    random: Annotated[int, typer.Option(min=0, help="Random configurations to try after that.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random configurations.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing of each architecture.")] = False,
) -> None:
    """Make tiny models of architectures with random weights, and hold every statistic against float64."""
    with exits(debug=context.obj):
        from rich.console import Console

        from probe.conformance.page import page
        from probe.conformance.run import run

        console = Console(stderr=True, highlight=False)

        def say(name: str, verdict: str) -> None:
            if not quiet:
                console.print(f"{verdict:10} {name}", markup=False)

        found = run(architectures or (), backend=backend, random=random, seed=seed, on_done=say)
        if out is not None:
            out.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if page_path is not None:
            page_path.write_text(page(found), encoding="utf-8")
        if out is None and page_path is None:
            print(page(found), end="")
        wrong = [each.name for each in found.architectures if each.verdict == "wrong"]
        if wrong or any(each.verdict == "wrong" for each in found.random):
            raise typer.Exit(1)

"""The command `probe`: run a casebook, list what there is, show a finished run, measure what statistics cost."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import probe
from probe.command import completing
from probe.command.bench import bench
from probe.command.conformance import conformance
from probe.command.doctor import doctor
from probe.command.exits import exits, partial, starts_over, stops
from probe.command.export import export
from probe.command.init import init
from probe.command.numbers import fractions, whole_numbers
from probe.command.places import place
from probe.command.run_all import ALL, conclude, run_all
from probe.command.scores import scores
from probe.command.specimens import specimens
from probe.command.verify import verify
from probe.command.view import view
from probe.errors import NotAsExpected, NotAvailable, UsageError

# What a command needs is imported inside it: `probe --help` and `probe list` start without torch, numpy or pydantic.

PLAY = "Play, and look at what was found"
BEGIN = "Begin"
TAKE_OUT = "Take out and compare"
MEASURE = "Measure the toolkit itself"

app = typer.Typer(
    name="probe",
    help="Find out why a language model fails on long context.",
    epilog="To begin: probe doctor; then probe run first-look; then probe init for a casebook of your own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 not as expected, 2 usage, 3 no model, 4 partial, 5 corrupt, 6 in use, 7 limit, 70 our error.
    """
    try:
        app()
    except BrokenPipeError:
        # The reader has gone (`probe list | head`); Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _version(asked: bool) -> None:
    if asked:
        print(f"probe {probe.__version__}")
        raise typer.Exit


@app.callback()
def program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
) -> None:
    """Find out why a language model fails on long context."""
    context.obj = debug


@app.command("run", rich_help_panel=PLAY)
def run_casebook(
    context: typer.Context,
    casebook: Annotated[
        str,
        typer.Argument(
            help="Name of a casebook (see `probe list`), a YAML file, or all.", autocompletion=completing.casebooks
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Specimen, hub id or folder; also of a peft adapter.", autocompletion=completing.models),
    ] = None,
    out: Annotated[
        Any, typer.Option(parser=place, metavar="PATH", help="Folder of the run, or s3://bucket/folder.")
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Prompt lengths in tokens, e.g. 64,128,256.")] = None,
    depths: Annotated[str | None, typer.Option(help="Where the needle stands, from 0 to 1, e.g. 0,0.5,1.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most samples per length and depth.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything drawn.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="Library that has the model: huggingface, transformer_lens, nnsight.",
            autocompletion=completing.backends,
        ),
    ] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="Run the model on NDIF by nnsight: every prompt leaves this machine.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1, mps.", autocompletion=completing.one_of(completing.DEVICES)),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16.", autocompletion=completing.one_of(completing.DTYPES)),
    ] = None,
    haystack: Annotated[Path | None, typer.Option(help="A text file of your own to hide the needle in.")] = None,
    device_map: Annotated[
        str | None, typer.Option(help="Spread the model over devices: auto, or a JSON object of parts and devices.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the model run code of its own; it can do anything.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Keep token ids and text out of what is written.")] = False,
    scan: Annotated[
        str | None,
        typer.Option(
            help="What computes attention statistics: auto, triton, blocked, reference.",
            autocompletion=completing.one_of(completing.SCANS),
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Who reads the units: local, or ray (on Slurm and Kubernetes too: docs/ray.md).",
            autocompletion=completing.one_of(completing.ENGINES),
        ),
    ] = None,
    engine_address: Annotated[
        str | None, typer.Option(help="Ray cluster, as host:port or auto; by default one is started here.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Ray workers; by default as many as there is room for.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPUs of each Ray worker; 0.5 puts two on one.")] = None,
    cpus_per_worker: Annotated[int | None, typer.Option(help="CPUs and threads of each Ray worker.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Sums on a GPU equal bit for bit in every run.")
    ] = False,
    cache: Annotated[
        str | None,
        typer.Option(
            help="Where keys and values lie: device, or offload (the host's memory).",
            autocompletion=completing.one_of(completing.CACHES),
        ),
    ] = None,
    no_check: Annotated[
        bool, typer.Option("--no-eager-check", help="Do not hold the model against its own eager attention first.")
    ] = False,
    held: Annotated[
        bool, typer.Option("--check", help="Exit 1 where the run does not show what the casebook expects.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many units, how much memory, disk and time; run nothing.")
    ] = False,
    max_hours: Annotated[
        float | None, typer.Option(min=0, help="Stop cleanly after so many hours; the same command goes on.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Stop cleanly where the run's folder reaches this size, e.g. 20GB.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another run in the folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the summary.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Play a casebook and write its report. The same command continues a run that was stopped."""
    of_engine = {
        "engine_address": engine_address,
        "workers": workers,
        "gpus_per_worker": gpus_per_worker,
        "cpus_per_worker": cpus_per_worker,
    }
    options: dict[str, Any] = {
        "model": model,
        "out": out,
        "lengths": lengths,
        "depths": depths,
        "limit": limit,
        "seed": seed,
        "backend": backend,
        "remote": remote,
        "device": device,
        "dtype": dtype,
        "haystack": haystack,
        "device_map": device_map,
        "trust_remote_code": trust_remote_code,
        "private": private,
        "scan": scan,
        "engine": engine,
        **of_engine,
        "deterministic": deterministic,
        "cache": cache,
        "no_check": no_check,
    }
    again = _command(casebook, options)
    with exits(debug=context.obj):
        options["limits"] = _limits(max_hours, budget)
        options["engine"] = _engine(engine, {name: options.pop(name) for name in of_engine})
        options["lengths"] = whole_numbers("--lengths", lengths)
        options["depths"] = fractions("--depths", depths)
        # What is not given is for `probe.run` to choose.
        usual = ("backend", "remote", "device_map", "scan", "engine", "deterministic", "cache", "limits")
        left = [name for name in usual if not options[name]]
        options = {name: value for name, value in options.items() if name not in (*left, "no_check")}
        if no_check:
            options["check"] = False
        from rich.console import Console

        from probe.command.terminal_progress import terminal_progress
        from probe.command.terminal_summary import print_estimate, print_summary

        progress = terminal_progress(Console(stderr=True), quiet=quiet or dry_run)
        # What a run's record says to run again holds no check.
        goes_on = f"{again} --check" if held else again
        if casebook == ALL:
            _run_all(
                options, held=held, dry_run=dry_run, force=force, progress=progress, again=goes_on, as_json=as_json
            )
            return
        if held:
            from probe.casebook import load

            if not load(casebook).expect:
                raise UsageError(f"the casebook {casebook!r} expects nothing (`expect:`) that could be checked")
        with stops(progress, None if dry_run else goes_on), starts_over(goes_on):
            from probe.player import run as play

            if dry_run:
                from probe.dry_run import dry_run as estimate

                options.pop("limits", None)
                print_estimate(casebook, estimate(casebook, **options), as_json=as_json)
                return
            finished = play(casebook, **options, force=force, command=again, progress=progress)
        from probe.telling.summary import summary

        brief = summary(finished)
        print_summary(brief, as_json=as_json)
        if held and (unmet := [each for each in brief["expected"]["results"] if not each["met"]]):
            raise NotAsExpected(f"{len(unmet)} of {len(brief['expected']['results'])} expectations are not met")
        if brief["failed"]:
            raise partial(len(brief["failed"]), again, sum(failure["kept"] for failure in brief["failed"]))


def _run_all(
    options: dict[str, Any], *, held: bool, dry_run: bool, force: bool, progress: Any, again: str, as_json: bool
) -> None:
    """Play every casebook that ships, print what came of each, and leave with the exit code that says so."""
    from probe.command.terminal_summary import print_all, print_came

    def alone(name: str, out: Path | None) -> str:
        given = options | _engine_flags(options.get("engine")) | {"out": out, "no_check": options.get("check") is False}
        return _command(name, {key: value for key, value in given.items() if key not in ("check", "limits")})

    if dry_run:
        raise UsageError("a dry run is one casebook's; `probe run NAME --dry-run` says what it would take")
    came = []
    with stops(progress, again), starts_over(again):
        for each in run_all(options, command=alone, force=force, progress=progress):
            came.append(each)
            if not as_json:
                print_came(each)
    print_all(came, as_json=as_json)
    conclude(came, check=held)


@app.command("list", rich_help_panel=BEGIN)
def list_rooms(
    context: typer.Context,
    room: Annotated[
        str | None,
        typer.Argument(
            help="models, casebooks, published, analyses, statistics, interventions, backends, workloads or engines.",
            autocompletion=completing.rooms,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what there is to run, each in one sentence."""
    with exits(debug=context.obj):
        from probe.command.listing import listing
        from probe.command.terminal_summary import print_listing

        print_listing(listing(room), as_json=as_json)


@app.command("show", rich_help_panel=PLAY)
def show_run(
    context: typer.Context,
    run: Annotated[
        Any,
        typer.Argument(parser=place, metavar="PATH", autocompletion=completing.runs, help="Folder or URL of a run."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a finished run found."""
    with exits(debug=context.obj):
        if not (run / "run.json").is_file():
            raise NotAvailable(f"no run in {run}: there is no run.json")
        from probe.command.terminal_summary import print_summary
        from probe.storage import trace_store
        from probe.telling.summary import summary

        opened = trace_store.open(run)
        if not isinstance(opened, trace_store.Run):
            raise UsageError(f"{run} holds a single trace, not a run")
        print_summary(summary(opened), as_json=as_json)


app.command("view", rich_help_panel=PLAY)(view)
app.command("verify", rich_help_panel=PLAY)(verify)
app.command("init", rich_help_panel=BEGIN)(init)
app.command("doctor", rich_help_panel=BEGIN)(doctor)
app.add_typer(specimens, name="specimens", rich_help_panel=BEGIN)
app.command("export", rich_help_panel=TAKE_OUT)(export)
app.command("scores", rich_help_panel=TAKE_OUT)(scores)
app.command("bench", rich_help_panel=MEASURE)(bench)
app.command("conformance", rich_help_panel=MEASURE)(conformance)


def _limits(max_hours: float | None, budget: str | None) -> Any:
    if max_hours is None and budget is None:
        return None
    from probe.limits import Limits, size_of

    max_seconds = None if max_hours is None else 3600 * max_hours
    return Limits(max_seconds, None if budget is None else size_of(budget))


def _engine(name: str | None, given: Mapping[str, Any]) -> Any:
    """Return the engine with the options that are its own."""
    fields = {key.removeprefix("engine_"): value for key, value in given.items() if value is not None}
    if fields and name != "ray":
        flags = ", ".join(f"--{key.replace('_', '-')}" for key, value in given.items() if value is not None)
        raise UsageError(f"{flags}: these are options of --engine ray")
    return {name: fields} if fields else name


def _engine_flags(engine: Any) -> dict[str, Any]:
    """Return an engine as the options of the command line that choose it."""
    name, fields = next(iter(engine.items())) if isinstance(engine, Mapping) else (engine, {})
    flags = {"engine_address" if field == "address" else field: value for field, value in fields.items()}
    return {"engine": name, **flags}


def _command(casebook: str, options: Mapping[str, Any]) -> str:
    """Return the command line that starts this run, and continues it."""
    words = ["probe", "run", casebook]
    for name, value in options.items():
        flag = "--no-eager-check" if name == "no_check" else "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return shlex.join(words)

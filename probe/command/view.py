"""The command `probe view`: look at a run or a trace in the browser, and try what is not in it with `--live`."""

from __future__ import annotations

import secrets
import signal
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe.command import completing
from probe.command.exits import exits
from probe.command.places import place
from probe.errors import ProbeError, UsageError

if TYPE_CHECKING:
    from probe.dashboard.live.session import Live
    from probe.storage.object_path import Location


def view(
    context: typer.Context,
    source: Annotated[
        list[Any],
        typer.Argument(
            parser=place,
            metavar="PATH...",
            autocompletion=completing.runs,
            help="Folders or URLs of runs, of traces, or of single units of a run.",
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8050,
    host: Annotated[
        str, typer.Option(help="Address to answer at. One that others can reach gets a token in its link.")
    ] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the link, open nothing.")] = False,
    live: Annotated[
        bool,
        typer.Option("--live", help="Let prompts be typed, which a model of this machine reads; at 127.0.0.1 alone."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="With --live: specimen, hub id or folder. By default the one that the run's record names.",
            autocompletion=completing.models,
        ),
    ] = None,
) -> None:
    """Open the explorer on runs or traces, until Ctrl-C. Nothing leaves this machine."""
    with exits(debug=context.obj):
        from probe.dashboard.application.guard import LOOPBACK
        from probe.dashboard.application.serving import bound, serve

        if model is not None and not live:
            raise UsageError("--model names the model that reads what is typed: say --live too")
        if live and host not in LOOPBACK:
            raise UsageError(f"--live is for this machine alone, and {host!r} can be reached from elsewhere")
        token = None if host in LOOPBACK else secrets.token_urlsafe(24)
        with _live(source, model) if live else _nobody() as asked:
            server = bound(source, host=host, port=port, token=token, live=asked)
            place = f"[{host}]" if ":" in host else host
            link = f"http://{place}:{server.port}/" + (f"?token={token}" if token else "")

            def ready() -> None:
                print(f"{', '.join(map(str, source))} at {link}", flush=True)
                if asked is not None:
                    print(f"Prompts that are typed are read by {asked.model}, which the first one loads.")
                print("Ctrl-C ends it.", flush=True)
                if not no_browser:
                    webbrowser.open(link)

            serve(server, ready)


@contextmanager
def _nobody() -> Iterator[None]:
    yield None


@contextmanager
def _live(sources: Sequence[Location], model: str | None) -> Iterator[Live]:
    """Yield what reads typed prompts, and end it with its process and its folder however the block ends."""
    from probe.dashboard.live.session import Live

    name, options = (model, {}) if model is not None else recorded_model(sources)
    # Whoever ends the explorer from outside ends the model's process with it.
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    asked = Live(name, options)
    try:
        yield asked
    finally:
        asked.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def recorded_model(sources: Sequence[Location]) -> tuple[str, dict[str, Any]]:
    """Return the model that the first of these runs or traces to name one names, and how it was loaded.

    Raises UsageError where none does, or where it ran code of its own, which a record is not to start.
    """
    from probe.storage.trace_store import Run
    from probe.storage.trace_store import open as open_trace

    for source in sources:
        # One that cannot be opened is said in the explorer, beside the others.
        with suppress(ProbeError):
            opened = open_trace(source)
            found = opened.record.get("provenance") if isinstance(opened, Run) else opened.provenance
            if isinstance(found, Mapping) and isinstance(found.get("model"), str) and found["model"]:
                break
    else:
        raise UsageError(f"{', '.join(map(str, sources))}: no record says of which model; --live --model NAME does")
    if found.get("trust_remote_code"):
        raise UsageError(f"{found['model']} ran code of its own, which nobody starts from a record; name another")
    options = {name: found.get(name) for name in ("revision", "backend")}
    if options["backend"] == "huggingface":
        options["dtype"] = found.get("dtype")
    return found["model"], {key: value for key, value in options.items() if isinstance(value, str)}

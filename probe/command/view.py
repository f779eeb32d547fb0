"""The command `probe view`: look at a run or a trace in the browser."""

from __future__ import annotations

import secrets
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from probe.command.exits import exits


def view(
    context: typer.Context,
    source: Annotated[list[Path], typer.Argument(help="Folders of runs, of traces, or of single units of a run.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8050,
    host: Annotated[
        str, typer.Option(help="Address to answer at. One that others can reach gets a token in its link.")
    ] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the link, open nothing.")] = False,
) -> None:
    """Open the explorer on runs or traces, until Ctrl-C. Nothing leaves this machine."""
    with exits(debug=context.obj):
        from probe.dashboard.application.guard import LOOPBACK
        from probe.dashboard.application.serving import bound, serve

        token = None if host in LOOPBACK else secrets.token_urlsafe(24)
        server = bound(source, host=host, port=port, token=token)
        place = f"[{host}]" if ":" in host else host
        link = f"http://{place}:{server.port}/" + (f"?token={token}" if token else "")

        def ready() -> None:
            print(f"{', '.join(map(str, source))} at {link}\nCtrl-C ends it.", flush=True)
            if not no_browser:
                webbrowser.open(link)

        serve(server, ready)

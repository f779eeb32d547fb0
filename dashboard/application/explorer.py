"""The explorer: a Dash application over runs and traces, with the pages that this folder's parent holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import dash_mantine_components as dmc
from dash import ALL, MATCH, ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from flask import Response, abort, request

from probe.dashboard.application.address import SHARED
from probe.dashboard.application.first_paint import first_paint
from probe.dashboard.application.guard import LOOPBACK, guard
from probe.dashboard.application.keys import keys_dialog
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.page import Page, pages
from probe.dashboard.application.panel import exported, to_csv
from probe.dashboard.live import section
from probe.dashboard.live.session import Live
from probe.errors import UsageError
from probe.storage.object_path import Location, ObjectPath

PLACE: Final = "place"
"""Id of the address."""

TICK_MS: Final = 2000
"""Milliseconds between looks at a run that is still being written."""

MOST_BYTES: Final = 1 << 24
"""Bytes of one request, at most, where prompts can be typed."""


class Explorer(Dash):  # type: ignore[misc]
    """A Dash application whose first answer can be read before any script has run."""

    opened: Opened
    first_page: str

    def interpolate_index(self, **parts: Any) -> str:
        """Return the page, what was found in it as plain HTML until the scripts have drawn the rest."""
        if request.path.strip("/") in ("", self.first_page):
            parts["app_entry"] = first_paint(self.opened, request.args.get("run", ""))
        page: str = super().interpolate_index(**parts)
        # What stands in a frame of another page shows no header, from the first moment on.
        bare = ' class="explorer-bare"' if request.args.get("bare") == "on" else ""
        return page.replace("<html>", f'<html lang="en"{bare}>', 1)


def explorer(
    path: Location | str | Sequence[Location | str],
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    embedded: bool = False,
    live: Live | None = None,
) -> Dash:
    """Return the application over one or several folders, not yet serving; `host` is the address that it will answer.

    `embedded` lets pages of this machine, such as a notebook, show it in a frame. With `live` prompts can be typed,
    which that model reads. Raises UsageError for an address that others can reach where there is no token, or where
    prompts can be typed, and as `probe.open` does where no folder can be opened.
    """
    if live is not None and (host not in LOOPBACK or embedded):
        raise UsageError(f"--live is for this machine alone: it is not served at {host!r}, nor within another page")
    opened = Opened([path] if isinstance(path, str | Path | ObjectPath) else path)
    made: dict[str, Page] = {name: page(opened) for name, page in pages().items()}
    # Everything that an environment variable could set otherwise is said here.
    app = Explorer(
        "probe",
        title=f"{opened.title} · probe",
        update_title="",
        assets_folder=str(Path(__file__).parent.parent / "assets"),
        serve_locally=True,
        use_pages=False,
        pages_folder="",
        url_base_pathname="/",
        suppress_callback_exceptions=True,
        add_log_handler=False,
        compress=False,
        websocket_callbacks=False,
        enable_mcp=False,
    )
    app.opened, app.first_page = opened, next(iter(made))
    app.layout = lambda: _shell(opened, made)
    for page in made.values():
        page.register(app)
    if live is not None:
        section.register(app, live, opened, made)
        app.server.config["MAX_CONTENT_LENGTH"] = MOST_BYTES
    _route(app, opened, made, live)
    _serve_tables(app, made)
    guard(app.server, host, token, app.csp_hashes(), embedded=embedded)
    return app


def _shell(opened: Opened, made: Mapping[str, Page]) -> Any:
    # Whoever loads a page sees what is there now, also of a run that was taken up again.
    opened.refresh()
    links = [dcc.Link(page.title, href=f"/{name}", id=f"nav-{name}") for name, page in made.items()]
    shared = {part.name for part in SHARED}
    takes = {name: [c.name for c in page.controls if c.name in shared] for name, page in made.items()}
    header = html.Header(
        [
            html.Span("probe", className="explorer-brand"),
            html.Span(opened.title, className="explorer-run", title=", ".join(opened.names)),
            html.Nav(links, className="explorer-nav", **{"aria-label": "Pages"}),
            html.Span(_status(opened), id="status", className="explorer-status", role="status"),
            html.Button("?", id="keys-open", type="button", className="explorer-button", **{"aria-label": "Keys"}),
            dmc.ColorSchemeToggle(
                lightIcon="☀", darkIcon="☾", size="sm", variant="default", **{"aria-label": "Dark or light"}
            ),
        ],
        className="explorer-header",
    )
    return dmc.MantineProvider(
        [
            dcc.Location(id=PLACE, refresh=False),
            dcc.Store(id="pages", data=takes),
            dcc.Store(id="fresh", data=opened.version),
            dcc.Store(id="followed"),
            dcc.Interval(id="tick", interval=TICK_MS, disabled=not opened.running),
            html.A("Skip to the page", href="#page", className="explorer-skip"),
            header,
            html.Main(id="page", tabIndex="-1"),
            keys_dialog(),
            html.Div(id="said", className="explorer-said", role="status", **{"aria-live": "polite"}),
        ],
        defaultColorScheme="auto",
        theme={"primaryColor": "blue", "fontFamily": "Inter, 'Segoe UI', Helvetica, Arial, sans-serif"},
    )


def _route(app: Dash, opened: Opened, made: Mapping[str, Page], live: Live | None) -> None:
    first = next(iter(made))

    @app.callback(Output("page", "children"), Input(PLACE, "pathname"))  # type: ignore[untyped-decorator]
    def show(pathname: str | None) -> Any:
        name = (pathname or "/").strip("/") or first
        if name not in made:
            return dmc.Alert(f"There is no page {name!r}; there are {', '.join(made)}.", title="Nothing here", m="md")
        layout = made[name].layout()
        return section.with_section(layout, live) if made[name].live else layout

    @app.callback(  # type: ignore[untyped-decorator]
        Output("fresh", "data"),
        Output("status", "children"),
        Output("tick", "disabled"),
        Input("tick", "n_intervals"),
        State("fresh", "data"),
        prevent_initial_call=True,
    )
    def look_again(_: int, version: int) -> tuple[Any, ...]:
        opened.refresh()
        fresh = no_update if opened.version == version else opened.version
        return fresh, _status(opened), not opened.running

    app.clientside_callback(
        ClientsideFunction("address", "links"),
        *(Output(f"nav-{name}", "href") for name in made),
        *(Output(f"nav-{name}", "className") for name in made),
        Input(PLACE, "pathname"),
        Input(PLACE, "search"),
        State("pages", "data"),
    )
    app.clientside_callback(
        ClientsideFunction("later", "made"),
        Output({"later": MATCH, "part": "place"}, "children"),
        Input({"later": MATCH, "part": "place"}, "n_clicks"),
        State({"later": MATCH, "part": "made"}, "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("address", "follow"),
        Output("followed", "data"),
        Input({"figure": ALL}, "clickData"),
        State({"figure": ALL}, "figure"),
        State("pages", "data"),
        prevent_initial_call=True,
    )


def _serve_tables(app: Dash, made: Mapping[str, Page]) -> None:
    """Answer `/csv/PAGE/FIGURE?…` with the numbers of the figure that the page shows at that address."""

    @app.server.route("/csv/<page>/<name>")  # type: ignore[untyped-decorator]
    def table(page: str, name: str) -> Response:
        if page not in made:
            abort(404)
        _, items = made[page].shown(request.query_string.decode("utf-8", "replace"))
        found = exported(items, name)
        if found is None:
            abort(404)
        # A file to save: no browser shows it, whatever a token in it says.
        file = re.sub(r"[^A-Za-z0-9_-]", "", f"{page}-{name}")
        headers = {"Content-Disposition": f'attachment; filename="{file}.csv"'}
        return Response(to_csv(*found.rows()), mimetype="text/csv; charset=utf-8", headers=headers)


def _status(opened: Opened) -> str:
    said = [f"{run.name}: running, {run.progress}" for run in opened.runs() if run.running]
    said += [f"{run.name} cannot be read any more: {run.trouble}" for run in opened.runs() if run.trouble]
    said += [f"{name} cannot be shown" for name in opened.broken]
    return " · ".join(said)

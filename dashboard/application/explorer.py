"""The explorer: a Dash application over one run or trace, with the pages that this folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import dash_mantine_components as dmc
from dash import Dash, Input, Output, dcc, html

from probe.dashboard.application.guard import guard
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.page import Page, pages

PLACE: Final = "place"
"""Id of the address."""


def explorer(path: Path | str, *, host: str = "127.0.0.1", token: str | None = None) -> Dash:
    """Return the application, not yet serving; `host` is the address that it will answer.

    Raises UsageError for an address that others can reach where there is no token, and as `probe.open` does.
    """
    opened = Opened(path)
    made: dict[str, Page] = {name: page(opened) for name, page in pages().items()}
    # Everything that an environment variable could set otherwise is said here.
    app = Dash(
        "probe",
        title=f"{opened.name} · probe",
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
    app.layout = _shell(opened, made)
    for page in made.values():
        page.register(app)
    _route(app, made)
    guard(app.server, host, token, app.csp_hashes())
    return app


def _shell(opened: Opened, made: Mapping[str, Page]) -> Any:
    links = [dmc.Anchor(page.title, href=f"/{name}", size="sm", underline="hover") for name, page in made.items()]
    header = dmc.Group(
        [dmc.Text("probe", fw=700), dmc.Text(opened.name, size="sm", c="dimmed", truncate="end", maw=420), *links],
        className="explorer-header",
        gap="md",
    )
    return dmc.MantineProvider(
        [dcc.Location(id=PLACE, refresh=False), header, html.Main(id="page")],
        defaultColorScheme="auto",
        theme={"primaryColor": "blue", "fontFamily": "Inter, 'Segoe UI', Helvetica, Arial, sans-serif"},
    )


def _route(app: Dash, made: Mapping[str, Page]) -> None:
    first = next(iter(made))

    @app.callback(Output("page", "children"), Input(PLACE, "pathname"))  # type: ignore[untyped-decorator]
    def show(pathname: str | None) -> Any:
        name = (pathname or "/").strip("/") or first
        if name not in made:
            return dmc.Alert(f"There is no page {name!r}; there are {', '.join(made)}.", title="Nothing here", m="md")
        return made[name].layout()

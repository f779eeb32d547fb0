"""What a page is made of: figures, tables and words, each with what a person expects beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import dcc, html

from probe.errors import NewerFormat, StoreCorrupt
from probe.figure_table import Rows, figure_table
from probe.finding import Figure
from probe.storage.csv_table import cell
from probe.telling.drawing import drawing
from probe.visible import visible

Item = Any
"""What a page shows: a Dash component, a Panel, a Grid, or a sequence of these side by side."""

CONFIG: Final = {
    "displayModeBar": False,
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "showEditInChartStudio": False,
    "plotlyServerURL": "",
}
"""What plotly.js may do in a page: nothing that leads elsewhere."""


@dataclass(frozen=True)
class Panel:
    """A figure with its title and caption, and its ways out: PNG, SVG, CSV, and the lines that make it in Python."""

    figure: Figure
    python: str
    """The lines that make this very figure in a notebook; its last expression is the figure."""
    table: Callable[[], tuple[Sequence[str], Rows]] | None = None
    """Columns and rows behind it, where these are others than what is drawn."""
    follow: str = ""
    """Where a click on a point leads: an address with `{x}`, `{y}`, `{customdata}` in it; run and unit go along."""
    graph: str = ""
    """Id of a graph that the page keeps from view to view, and draws this into; one of its own where empty."""

    @property
    def name(self) -> str:
        """The figure's name; one of its kind on a page."""
        return self.figure.name

    def rows(self) -> tuple[Sequence[str], Rows]:
        """Return the columns and rows that its CSV holds."""
        return figure_table(self.figure) if self.table is None else self.table()


@dataclass(frozen=True)
class Grid:
    """A table that can be sorted and filtered."""

    name: str
    columns: Sequence[str]
    table: Rows
    title: str = ""
    python: str = ""
    height: int = 360
    follow: Mapping[str, str] = field(default_factory=dict)
    """Columns that are links, each with the address it leads to: `{column}` in it is that cell of the row."""

    def rows(self) -> tuple[Sequence[str], Rows]:
        """Return the columns and rows that its CSV holds."""
        return self.columns, self.table


def laid_out(page: str, search: str, items: Sequence[Item]) -> list[Any]:
    """Return what a page shows as Dash components; a sequence within becomes a row."""
    return [_component(page, search, item) for item in items]


def exported(items: Sequence[Item], name: str) -> Panel | Grid | None:
    """Return the figure or table of a name, None where there is none."""
    for item in items:
        if isinstance(item, Panel | Grid) and item.name == name:
            return item
        if isinstance(item, list | tuple) and (found := exported(item, name)) is not None:
            return found
    return None


def to_csv(columns: Sequence[str], rows: Rows) -> str:
    """Return a table as CSV; no cell of it is a formula to a spreadsheet."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([cell(str(column)) for column in columns])
    writer.writerows([[cell(value) for value in row] for row in rows])
    return out.getvalue()


def problem(words: str, title: str = "Nothing to show here") -> Any:
    """Return what stands where something cannot be shown: which, why, and what to do."""
    return dmc.Alert(visible(words, keep="\n"), title=title, color="orange", className="explorer-problem")


def trouble(error: Exception) -> Any:
    """Return an error of ours in words: which, and what to do about it."""
    if isinstance(error, NewerFormat):
        return problem(f"{error}. Everything else can be looked at here.", "Written by a newer version")
    if isinstance(error, StoreCorrupt):
        said = (
            "Everything else can still be looked at. `probe verify FOLDER` lists all that is damaged; with --repair it "
            "plays the casebook again for that alone."
        )
        return problem(f"{error}.\n{said}", "Damaged")
    return problem(str(error))


def words(text: str, **fields: Any) -> Any:
    """Return a paragraph of plain text, hidden characters made visible."""
    return html.P(visible(text, keep="\n"), **{"className": "explorer-notes", **fields})


def _component(page: str, search: str, item: Item) -> Any:
    if isinstance(item, Panel):
        return _panel(page, search, item)
    if isinstance(item, Grid):
        return _grid(page, search, item)
    if isinstance(item, list | tuple):
        return html.Div(laid_out(page, search, item), className="explorer-row")
    return item


def _panel(page: str, search: str, panel: Panel) -> Any:
    drawn = drawing(panel.figure)
    layout = drawn["layout"] | {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
    if panel.follow:
        layout["meta"] = {**(layout.get("meta") or {}), "follow": panel.follow}
    height = layout.pop("height", 370)
    place = f"{page}-{panel.name}"
    title = visible(panel.figure.title)
    ways = _ways_out(page, search, panel.name, title, panel.python)
    head = html.Div([html.H2(title, id=f"{place}-title"), ways], className="explorer-panel-head")
    if panel.graph:
        return html.Div([head, dcc.Store(id=f"{panel.graph}-drawing", data={"data": drawn["data"], "layout": layout})])
    graph = dcc.Graph(
        # An id that a single callback in the browser can watch, whatever the page.
        id={"figure": place},
        figure={"data": drawn["data"], "layout": layout},
        config=CONFIG,
        style={"height": f"{height}px"},
    )
    return html.Section(
        [
            head,
            html.Div(graph, role="group", **{"aria-labelledby": f"{place}-title", "aria-describedby": f"{place}-says"}),
            html.P(visible(panel.figure.caption), id=f"{place}-says", className="explorer-notes"),
        ],
        id=place,
        className="explorer-panel",
    )


def _grid(page: str, search: str, grid: Grid) -> Any:
    place = f"{page}-{grid.name}"
    fields = [f"c{i}" for i in range(len(grid.columns))]
    title = visible(grid.title or grid.name.replace("_", " "))
    table = dag.AgGrid(
        id={"grid": place},
        columnDefs=[
            {"field": each, "headerName": visible(column.replace("_", " ")), "sortable": True, "filter": True}
            | ({"cellRenderer": "ExplorerLink"} if column in grid.follow else {})
            for each, column in zip(fields, grid.columns, strict=True)
        ],
        rowData=[dict(zip(fields, map(_shown, row), strict=True)) | _links(grid, fields, row) for row in grid.table],
        columnSize="autoSize",
        dashGridOptions={"ensureDomOrder": True, "suppressFieldDotNotation": True, "animateRows": False},
        style={"height": f"{grid.height}px"},
        className="ag-theme-quartz explorer-grid",
    )
    head = html.Div(
        [html.H2(title, id=f"{place}-title"), _ways_out(page, search, grid.name, title, grid.python, drawn=False)],
        className="explorer-panel-head",
    )
    # A table is made when it is scrolled into view (grid.js): most lie below the first screen, and cost more than it.
    later = html.Div(
        id={"later": place, "part": "place"}, className="explorer-later", style={"minHeight": f"{grid.height}px"}
    )
    made = dcc.Store(id={"later": place, "part": "made"}, data=table.to_plotly_json())
    return html.Section([head, later, made], id=place, className="explorer-panel")


def _links(grid: Grid, fields: Sequence[str], row: Sequence[Any]) -> dict[str, str]:
    """Return where a row's links lead, by `to_` and the field that each stands in."""
    values = dict(zip(grid.columns, row, strict=True))
    where = dict(zip(grid.columns, fields, strict=True))
    return {
        f"to_{where[column]}": re.sub(r"\{(\w+)\}", lambda found: quote(str(values[found[1]]), safe=""), address)
        for column, address in grid.follow.items()
    }


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return (
        visible(value) if isinstance(value, str) else value if value is None or isinstance(value, int) else str(value)
    )


def _ways_out(page: str, search: str, name: str, title: str, python: str, *, drawn: bool = True) -> Any:
    place = f"{page}-{name}"
    ways: list[Any] = []
    for kind in ("png", "svg") if drawn else ():
        data = {"data-export": kind, "data-place": place, "aria-label": f"{title}: {kind.upper()}"}
        ways.append(html.Button(kind.upper(), type="button", **data))
    link = f"/csv/{quote(page)}/{quote(name)}{search}"
    ways.append(html.A("CSV", href=link, download=f"{place}.csv", **{"aria-label": f"{title}: CSV"}))
    if python:
        data = {"data-python": python, "aria-label": f"{title}: copy as Python"}
        ways.append(html.Button("Python", type="button", **data))
    return html.Div(ways, className="explorer-ways-out", role="group", **{"aria-label": f"Take away: {title}"})

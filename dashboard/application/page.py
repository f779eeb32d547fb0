"""What a page of the explorer is: one file of this folder, found by its name."""

from __future__ import annotations

import contextlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import dash_mantine_components as dmc
from dash import ClientsideFunction, Input, Output, State, dcc, html

from probe import discovery
from probe.dashboard.application.address import (
    HEAD,
    LAYER,
    RUN,
    UNIT,
    Control,
    View,
    number,
    read_address,
    write_address,
)
from probe.dashboard.application.panel import Item, laid_out, problem, trouble
from probe.errors import MissingStatistic, ProbeError, UsageError
from probe.visible import visible

if TYPE_CHECKING:
    from dash import Dash

    from probe.dashboard.application.opened import Opened, OpenedRun
    from probe.storage.trace_store import Trace

Options = Sequence[tuple[str, str]]
"""What a select offers: a value of the address, and what it is in words."""

_RESETS = {RUN.name: {UNIT.name, LAYER.name, HEAD.name}, LAYER.name: {HEAD.name}}


class Page(ABC):
    """One page. `dashboard/x.py` holds `class x(Page)`: what can be chosen, and what is shown for a view.

    The address is where a view is kept: a control changes the address and nothing else, and what is shown follows from
    the address alone. So a reload, a link and the back button show the same.
    """

    title: ClassVar[str]
    """What the page is called."""
    order: ClassVar[int] = 100
    """Where it stands among the others; the first one opens."""
    controls: ClassVar[tuple[Control, ...]] = (RUN,)
    """What can be chosen."""
    live: ClassVar[bool] = False
    """Whether a prompt typed on the spot is of use here: such a page carries the section *What if*."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        """The runs and traces that are looked at."""

    @property
    def name(self) -> str:
        """The page's name in an address, and what its ids begin with."""
        return type(self).__name__

    @abstractmethod
    def content(self, view: View) -> Sequence[Item]:
        """Return what is shown for a view that `completed` has filled in.

        An error of ours that it raises (any ProbeError, an IndexError) is shown in its place, as words.
        """

    def options(self, view: View) -> Mapping[str, Options]:
        """Return what the selects offer in a view; those of run, unit, layer and head are known."""
        return {}

    def completed(self, view: View) -> dict[str, str]:
        """Return the view with what the address leaves open filled in: the first run, its first unit, layer, head 0.

        Raises as `Opened.run` and `OpenedRun.trace` do, and UsageError for a layer or head that there is not.
        """
        full = dict(view)
        if RUN.name not in full:
            return full
        run = self.opened.run(full[RUN.name])
        full[RUN.name] = run.name
        if UNIT.name in full:
            trace = run.trace(full[UNIT.name])
            full[UNIT.name] = trace.unit
            if LAYER.name in full:
                full |= _at_head(trace, full)
        return full

    def run(self, view: View) -> OpenedRun:
        """Return the run of a view."""
        return self.opened.run(view.get(RUN.name, ""))

    def trace(self, view: View) -> Trace:
        """Return the unit of a view."""
        return self.run(view).trace(view.get(UNIT.name, ""))

    def shown(self, search: str | None) -> tuple[dict[str, str], Sequence[Item]]:
        """Return the view that an address says, and what is shown for it; never raises what was foreseen."""
        view = {control.name: control.default for control in self.controls}
        try:
            view = read_address(search, self.controls)
            view = self.completed(view)
            return view, self.content(view)
        except (ProbeError, IndexError) as error:
            return view, [trouble(error)]
        # Whatever it is, the page must say so rather than stay as it was; the terminal has the rest.
        except Exception as error:
            logging.getLogger("probe").exception("the page %s failed for %r", self.name, search)
            said = f"{type(error).__name__}: {error}"[:500]
            return view, [problem(f"{said}. This is an error of the explorer; its terminal says more.", "It failed")]

    def layout(self) -> Any:
        """Return the page's frame: controls on the left, a place for what is shown on the right."""
        side = [self._control(control) for control in self.controls if control.label]
        static = [{"name": c.name, "default": c.default, "resets": self._resets(c.name)} for c in self.controls]
        return html.Div(
            [
                dcc.Location(id=self._id("place"), refresh=False),
                dcc.Store(id=self._id("view")),
                dcc.Store(id=self._id("controls"), data=static),
                html.Aside(side, className="explorer-side", **{"aria-label": "What is shown"}),
                html.Section(
                    [html.H1(self.title, className="explorer-title"), html.Div(id=self._id("content"))],
                    className="explorer-main explorer-scrolls",
                ),
            ],
            className="explorer-page",
        )

    def register(self, app: Dash) -> None:
        """Add the callbacks: what is shown follows the address; the address follows the controls."""
        chosen = [control for control in self.controls if control.label]
        selects = [control for control in chosen if control.kind == "select"]

        @app.callback(  # type: ignore[untyped-decorator]
            Output(self._id("content"), "children"),
            Output(self._id("view"), "data"),
            *(Output(self._id(control.name), "data") for control in selects),
            *(Output(self._id(control.name), _holds(control)) for control in chosen),
            Input(self._id("place"), "search"),
            Input("fresh", "data"),
        )
        def look(search: str | None, _: Any) -> tuple[Any, ...]:
            view, items = self.shown(search)
            offered = self._offered(view)
            address = write_address(view, self.controls)
            values = [view[c.name] == "on" if c.kind == "switch" else view[c.name] or None for c in chosen]
            content = html.Div(
                laid_out(self.name, address, items),
                className="explorer-content",
                **{
                    "data-steps": json.dumps(self._steps(view, offered)),
                    "data-resets": json.dumps({c.name: self._resets(c.name) for c in self.controls}),
                },
            )
            data = [[{"value": value, "label": label} for value, label in offered[c.name]] for c in selects]
            return (content, view, *data, *values)

        if chosen:
            app.clientside_callback(
                ClientsideFunction("address", "changed"),
                Output(self._id("place"), "search"),
                *(Input(self._id(control.name), _holds(control)) for control in chosen),
                State(self._id("place"), "search"),
                State(self._id("view"), "data"),
                State(self._id("controls"), "data"),
                prevent_initial_call=True,
            )

    def _id(self, part: str) -> str:
        return f"{self.name}-{part}"

    def _offered(self, view: View) -> dict[str, Options]:
        """Return every select's options; one whose value is not among them offers it too, or it would show nothing."""
        offered: dict[str, Options] = {control.name: () for control in self.controls if control.kind == "select"}
        if RUN.name in offered:
            offered[RUN.name] = [(name, name) for name in self.opened.names]
        for known in (self._known, self.options):
            # What is wrong stands in the page already; what can be chosen beside it still can.
            with contextlib.suppress(ProbeError, IndexError):
                offered |= known(view)
        for name, options in offered.items():
            if view.get(name) and view[name] not in {value for value, _ in options}:
                offered[name] = [*options, (view[name], visible(view[name]))]
        return offered

    def _known(self, view: View) -> dict[str, Options]:
        known: dict[str, Options] = {}
        if UNIT.name in view:
            known[UNIT.name] = list(self.run(view).units().items())
            if LAYER.name in view:
                heads = self.trace(view).heads
                known[LAYER.name] = [(str(layer), str(layer)) for layer in heads]
                count = heads.get(number(view, LAYER.name) or 0, 0)
                known[HEAD.name] = [(str(head), str(head)) for head in range(count)]
        return {name: options for name, options in known.items() if name in view}

    def _steps(self, view: View, offered: Mapping[str, Options]) -> dict[str, list[str | None]]:
        """Return what comes before and after each chosen value, for the keyboard."""
        steps: dict[str, list[str | None]] = {}
        for control in self.controls:
            values = [value for value, _ in offered.get(control.name, ())] or list(control.options)
            if view.get(control.name) in values:
                at = values.index(view[control.name])
                around = [values[at - 1] if at else None, values[at + 1] if at + 1 < len(values) else None]
                steps[control.name] = around
        return steps

    def _resets(self, name: str) -> list[str]:
        """Return the parts that are left open again where one changes."""
        return sorted(_RESETS.get(name, set()) | {c.name for c in self.controls if name in c.of})

    def _control(self, control: Control) -> Any:
        name = self._id(control.name)
        if control.kind == "select":
            return dmc.Select(
                id=name, label=control.label, data=[], searchable=True, allowDeselect=False, size="xs", limit=200
            )
        if control.kind == "switch":
            return dmc.Switch(id=name, label=control.label, checked=control.default == "on", size="sm")
        if control.kind == "text":
            return dmc.TextInput(id=name, label=control.label, debounce=400, size="xs")
        choice = dmc.SegmentedControl(
            id=name, data=list(control.options), value=control.default, fullWidth=True, size="xs"
        )
        return html.Div(
            [dmc.Text(control.label, size="xs", fw=500), choice], role="group", **{"aria-label": control.label}
        )


def pages() -> dict[str, type[Page]]:
    """Return every page by its name, the first to open first."""
    found: dict[str, type[Page]] = {name: discovery.get("dashboard", name) for name in discovery.names("dashboard")}
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def _holds(control: Control) -> str:
    return "checked" if control.kind == "switch" else "value"


def _at_head(trace: Trace, view: View) -> dict[str, str]:
    heads = trace.heads
    if not heads:
        raise MissingStatistic(
            f"nothing by head was captured in the unit {trace.unit!r}. To see it, capture a statistic of attention (a "
            "casebook's capture, or probe.trace(…, statistics=['attention_map', 'entropy', …]))"
        )
    layer, head = number(view, LAYER.name), number(view, HEAD.name)
    layer = next(iter(heads)) if layer is None else layer
    if layer not in heads:
        raise UsageError(f"there is no layer {layer} in this trace; there are {_listed(list(heads))}")
    if (head or 0) >= heads[layer]:
        raise UsageError(f"layer {layer} has no head {head}; its heads are 0 to {heads[layer] - 1}")
    found = {LAYER.name: str(layer), HEAD.name: str(head or 0)}
    return {name: value for name, value in found.items() if name in view}


def _listed(numbers: list[int]) -> str:
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))

"""What a page of the explorer is: one file of this folder, found by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from probe import discovery

if TYPE_CHECKING:
    from dash import Dash

    from probe.dashboard.application.opened import Opened


class Page(ABC):
    """One page. `dashboard/x.py` holds `class x(Page)`, with ids that begin with its own name."""

    title: ClassVar[str]
    """What the page is called."""
    order: ClassVar[int] = 100
    """Where it stands among the others; the first one opens."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        """The run or trace that is looked at."""

    @abstractmethod
    def layout(self) -> Any:
        """Return the page's components."""

    @abstractmethod
    def register(self, app: Dash) -> None:
        """Add the page's callbacks."""


def pages() -> dict[str, type[Page]]:
    """Return every page by its name, the first to open first."""
    found: dict[str, type[Page]] = {name: discovery.get("dashboard", name) for name in discovery.names("dashboard")}
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))

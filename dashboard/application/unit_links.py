"""Where a unit can be looked at: the pages that show one, in this explorer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from probe import discovery

_PAGES: Final = ("attention", "text")


def unit_links(run: str) -> dict[str, str]:
    """Return by page the address of a unit of a run, `{unit}` standing for its id; for `Grid.follow`."""
    return dict(_links(run))


def _links(run: str) -> Iterator[tuple[str, str]]:
    there = discovery.names("dashboard")
    for page in _PAGES:
        if page in there:
            yield page, f"/{page}?run={quote(run, safe='')}&unit={{unit}}"

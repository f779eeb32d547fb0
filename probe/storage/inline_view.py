"""The explorer seen from a notebook: in a frame below the cell, or as a link where nothing can be framed."""

from __future__ import annotations

import html
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probe.storage.run_folder import Run
    from probe.storage.unit_trace import Trace


@dataclass(frozen=True)
class InlineView:
    """One page of the explorer, which this process serves to this machine until it ends."""

    address: str
    """Where a browser on this machine finds it."""
    title: str
    """What it shows, in a few words."""
    height: int
    """Height of the frame in a notebook, pixels."""

    def __repr__(self) -> str:
        return f"{self.title}: {self.address}"

    def _repr_html_(self) -> str:
        address, title = html.escape(self.address), html.escape(self.title)
        return (
            f'<iframe src="{address}" title="{title}" width="100%" height="{self.height:d}" '
            'style="border: 1px solid #d0d7de; border-radius: 6px"></iframe>'
            f'<p>{title}: <a href="{address}" target="_blank" rel="noopener">{address}</a></p>'
        )


def inline_view(source: Run | Trace, page: str, parts: Mapping[str, str], title: str, height: int) -> InlineView:
    """Return a page of the explorer on a run or a trace, `parts` being those of its address; starts what serves it.

    Raises UsageError where there is no such page, or nothing at that address.
    """
    # By name: the explorer is built on what reads runs and traces, which must neither know it nor load it.
    embedding = importlib.import_module("probe.dashboard.application.embedding")
    return InlineView(embedding.address_of(source, page, parts), title, height)

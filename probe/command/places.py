"""Where a run or a trace lies, as it is written on the command line: a path, or the URL of object storage."""

from __future__ import annotations

from typing import Any

import typer

from probe.errors import ProbeError


def place(text: str) -> Any:
    """Return where a path or a URL leads, as `probe.storage.object_path.location`; a wrong one is a wrong option."""
    from probe.storage.object_path import location

    try:
        return location(text)
    except ProbeError as error:
        raise typer.BadParameter(str(error)) from error

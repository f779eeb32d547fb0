"""What this site adds to Sphinx: pages written from the code before a build, and links to them in the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import links, pages


def setup(app: Any) -> dict[str, Any]:
    """Have Sphinx write the pages first, and link names as it reads."""
    app.connect("builder-inited", _write)
    app.connect("source-read", _read)
    # Its lists name the pages that are there, which may have changed since.
    app.connect("env-get-outdated", lambda *_: ["index"])
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _write(app: Any) -> None:
    pages.write(Path(app.srcdir))


def _read(app: Any, document: str, source: list[str]) -> None:
    text = links.with_present_pages(source[0], Path(app.srcdir)) if document == "index" else source[0]
    # The ledger of models has names of architectures, and nothing of ours, in backticks.
    source[0] = text if document == "models" else links.linked(text, document)

"""A page for each casebook, published figure and specimen, from the files that ship with it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from probe.specimens import folders

from . import members, verified
from .member_pages import joined
from .verified import ROOT
from .wording import code, prose, table

_LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def casebook(name: str) -> str:
    """Return a casebook's README, with its YAML below."""
    path = Path(members.member("casebooks", name))
    yaml = path.read_text(encoding="utf-8")
    text = _moved((path.parent / "README.md").read_text(encoding="utf-8"), path.parent, "casebooks")
    return joined(text.strip(), f"## The casebook\n\n`casebooks/{name}/{name}.yaml`:", f"```yaml\n{yaml.strip()}\n```")


def specimen(name: str) -> str:
    """Return a specimen's card."""
    folder = folders()[name]
    text = (folder / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    return _moved(text, folder, "specimens").strip() + "\n"


def published(name: str) -> str:
    """Return what is known of a published figure, and the casebook that checks it."""
    book = verified.casebooks("published")[name]
    figure = book.published
    assert figure is not None
    yaml = Path(members.member("published", name)).read_text(encoding="utf-8")
    rows = [
        ("figure", prose(figure.figure)),
        ("source", prose(figure.source)),
        ("read from", figure.verified),
        ("what differs here", prose(figure.differs)),
        ("state", figure.state),
        ("model", code(book.model)),
    ]
    return joined(
        f"# {name}",
        f"*{book.question}*",
        table(("", ""), rows),
        f"```sh\nprobe run published/{name} --check\n```",
        verified.sources_table(figure.source),
        f"```yaml\n{yaml.strip()}\n```",
    )


def _moved(text: str, beside: Path, folder: str) -> str:
    """Return a file's Markdown with its links as they are seen from a folder of pages."""
    return _LINK.sub(lambda found: f"]({_seen(beside, found[1], folder)}{found[2] or ''})", text)


def _seen(beside: Path, link: str, folder: str) -> str:
    path = (beside / link).resolve()
    books, kinds, docs = ROOT / "casebooks", ROOT / "casebooks/specimens", ROOT / "docs"
    if path.name == "README.md" and path.parent.parent == kinds:
        return f"../specimens/{path.parent.name}.md"
    if path.name == "README.md" and path.parent.parent == books:
        return f"../casebooks/{path.parent.name}.md"
    return os.path.relpath(path, docs / "generated" / folder)

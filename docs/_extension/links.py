"""Names in backticks become links to their pages, in what people wrote as in what was generated."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from . import members

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})[^\n]*\n.*?^\1\2`*~*[ ]*$\n?", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"(?<![`\w\[])`([a-z][a-z0-9_-]+)`(?!`|\]|\()")
_TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def linked(text: str, document: str) -> str:
    """Return a page's Markdown with the names of members as links; fences, headings and links stay as they are."""
    parts, at = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_linked(text[at : fence.start()], document), fence[0]]
        at = fence.end()
    return "".join([*parts, _linked(text[at:], document)])


def _linked(text: str, document: str) -> str:
    return "\n".join(
        line if line.startswith("#") or re.match(r" {4}", line) else _NAME.sub(lambda m: _link(m, document), line)
        for line in text.split("\n")
    )


def _link(found: re.Match[str], document: str) -> str:
    name = found[1]
    page = members.page_of().get(name)
    # One word may be a name or just a word: only what has two parts is surely meant.
    if page is None or page == document or ("_" not in name and "-" not in name and not _about_members(document)):
        return found[0]
    return f"[`{name}`]({posixpath.relpath(page, posixpath.dirname(document) or '.')}.md)"


def _about_members(document: str) -> bool:
    return document in ("interventions", "workloads", "index", "reading-findings")


def with_present_pages(text: str, docs: Path) -> str:
    """Return the first page without the entries of pages that are not there, and with all that it does not name.

    So a page that somebody adds to the folder stands in the site at once, in the last list.
    """
    entries = {line.strip() for block in _TOCTREE.finditer(text) for line in block[1].splitlines()}
    named = {entry.rpartition("<")[2].rstrip(">") for entry in entries}
    there = {path.stem for path in docs.glob("*.md")} - {"index"}
    generated = {f"generated/{folder}/index" for folder in (*members.ROOMS, "specimens")} | {
        f"generated/{page}" for page in ("api", "methods", "verdicts")
    }
    *first, last = text.split("<!-- pages that no list names -->")
    rest = "\n".join(sorted(there - named))
    shown = f"```{{toctree}}\n:hidden:\n:caption: Also\n\n{rest}\n```" if rest else ""
    whole = shown.join([*first, last])

    def kept(block: re.Match[str]) -> str:
        lines = [line for line in block[1].splitlines() if _present(line, there | generated)]
        return "\n".join(["```{toctree}", *lines, "```"])

    return _TOCTREE.sub(kept, whole)


def _present(line: str, there: set[str]) -> bool:
    entry = line.strip()
    return not entry or entry.startswith(":") or entry.rpartition("<")[2].rstrip(">") in there

"""The code blocks of README and docs, and what is said where one is not run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""What people wrote; what is generated from the code is held by the tests of that code."""

_MARK = re.compile(r"<!-- not run: (.+?) -->")
_FENCE = re.compile(
    r"^(?P<in> *)(?P<mark>`{3,}|~{3,})(?P<language>[^\s`]*)[^\n]*\n(?P<text>.*?)^(?P=in)(?P=mark) *$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    """The page's path, relative to the checkout."""
    line: int
    """Line of its first line of text, from 1."""
    language: str
    """What the fence says it is."""
    text: str
    """What stands in it."""
    not_run: str | None
    """The reason that the comment before it gives for not running it; None where it is run."""

    @property
    def name(self) -> str:
        """Where it stands, as a test is called by it."""
        return f"{Path(self.page).name}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page in their order, Sphinx' own directives left out."""
    return list(_found(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()))


def _found(text: str, page: str) -> Iterator[Block]:
    for fence in _FENCE.finditer(text):
        if fence["language"].startswith("{"):
            continue
        before = text[: fence.start()].rstrip("\n").rpartition("\n")[2]
        mark = _MARK.fullmatch(before.strip())
        lines = (line.removeprefix(fence["in"]) for line in fence["text"].splitlines(keepends=True))
        at = text[: fence.start("text")].count("\n") + 1
        yield Block(page, at, fence["language"], "".join(lines), mark[1] if mark else None)


def every() -> list[Block]:
    """Return the blocks of all pages."""
    return [block for path in PAGES for block in blocks(path)]


def of(*languages: str) -> list[Block]:
    """Return the blocks in these languages that are to be run."""
    return [block for block in every() if block.language in languages and block.not_run is None]


def commands(text: str) -> list[str]:
    """Return the commands of a shell block, one each: lines that go on are joined, comments and outputs left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    console = any(line.startswith("$ ") for line in joined.splitlines())
    found = []
    for line in joined.splitlines():
        if console and not line.startswith("$ "):
            continue
        bare = re.sub(r"(?:^|\s)#.*$", "", line.removeprefix("$ ")).strip()
        found += [part.strip() for part in re.split(r"&&|\|\||;(?!;)|\s\|\s", bare) if part.strip()]
    return found


def inline_commands(text: str) -> Iterator[str]:
    """Yield the commands of the toolkit that stand in a sentence or an indented block, whole."""
    outside = _FENCE.sub("", text)
    yield from (found[1] for found in re.finditer(r"(?<!`)`(probe [a-z][^`]*)`", outside))
    yield from (found[1].strip() for found in re.finditer(r"^ {4}(probe [a-z].*)$", outside, re.M))

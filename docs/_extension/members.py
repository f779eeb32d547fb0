"""What there is to write a page about: the members of each room, with what their source says of their fields."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from pathlib import Path
from typing import Any, Final

from probe import discovery
from probe.specimens import folders

ROOMS: Final[dict[str, str]] = {
    "analyses": "analyses",
    "statistics": "kernels",
    "interventions": "hooks",
    "workloads": "workloads",
    "casebooks": "casebooks",
    "published": "published",
}
"""Folder of pages, and the room whose members it is about."""


@functools.cache
def names(folder: str) -> tuple[str, ...]:
    """Return what a folder of pages is about, by name, sorted."""
    if folder == "specimens":
        return tuple(folders())
    if folder == "statistics":
        from probe.kernels import statistic

        return tuple(statistic.names())
    return tuple(discovery.names(ROOMS[folder]))


@functools.cache
def member(folder: str, name: str) -> Any:
    """Import and return a member; of a casebook, its path."""
    return discovery.get(ROOMS[folder], name)


@functools.cache
def page_of() -> dict[str, str]:
    """Return the page, from the root of the site, of each name that means one thing alone."""
    found: dict[str, list[str]] = {}
    for folder in (*ROOMS, "specimens"):
        for name in names(folder):
            found.setdefault(name, []).append(f"generated/{folder}/{name}")
    return {name: pages[0] for name, pages in found.items() if len(pages) == 1}


def field_meanings(kind: type) -> dict[str, str]:
    """Return what stands under each field of a dataclass and of what it derives from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each) or "probe." in each.__module__:
            found |= _under_fields(each)
    return found


def _under_fields(kind: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(below):
            found[field.target.id] = inspect.cleandoc(below.value.value)
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def source_file(value: Any) -> str:
    """Return where a member is written, relative to the checkout."""
    import probe

    path = Path(inspect.getsourcefile(value) or "").resolve()
    for root in map(Path, probe.__path__):
        if path.is_relative_to(root.resolve().parent) and (root.parent / "pyproject.toml").is_file():
            return path.relative_to(root.resolve().parent).as_posix()
    return path.name if not path.is_relative_to(_root()) else path.relative_to(_root()).as_posix()


def _root() -> Path:
    return Path(__file__).resolve().parents[2]

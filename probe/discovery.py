"""Finds what each room holds: a scan of its folder, and the entry points of other people's packages."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

from probe.errors import UsageError

ROOMS: Final[dict[str, str]] = {
    "kernels": "statistic",
    "hooks": "intervention",
    "backends": "backend",
    "analyses": "analysis",
    "workloads": "workload",
    "casebooks": "casebook",
    "published": "published figure",
    "dashboard": "page",
    "engines": "engine",
}
"""What one member of each room is called."""

_MARKS: Final = {
    "kernels": ("Statistic",),
    "hooks": (
        "Intervention",
        "ChangeOfCalls",
        "ChangeOfPositions",
        "RescaledPositions",
        "ChangeOfPrompt",
        "ChangeOfRecurrences",
        "EvictionAtPromptEnd",
        "EvictionByStep",
    ),
    "backends": ("Backend",),
    "analyses": ("analysis",),
    "dashboard": ("Page",),
    "engines": ("Engine",),
}
"""Classes that a member derives from, or decorator that it bears; other files of a room are what its members share."""

_WITHIN: Final = {"backends": "hooks", "published": "casebooks"}
"""The room whose folder a room's own lies in."""

_YAML: Final = ("casebooks", "published")
"""Rooms whose members are files to be read, not modules: a casebook in a folder of its own, a published figure not."""


def modules(room: str) -> dict[str, str]:
    """Return the members of a room by name, sorted: an importable `module` or `module:object`, a casebook's path.

    A Python file is a member iff it defines a public class or function of its own name that is marked as its room's
    kind. Nothing is imported. Another package adds members by entry points in the group `probe.<room>`; one that takes
    a name already taken is left out with a warning that names it.
    """
    if room not in ROOMS:
        raise UsageError(f"there is no room {room!r}; there are {', '.join(ROOMS)}")
    found = {path.stem: _address(room, path) for path in _files(room)}
    for entry in _offered(f"probe.{room}", entry_points, _installed()):
        if entry.name in found:
            warnings.warn(
                f"{_owner(entry)} offers {ROOMS[room]} {entry.name!r} ({entry.value}), but {found[entry.name]} has "
                "that name already; the newcomer is left out",
                stacklevel=2,
            )
        elif not entry.name.startswith("_"):
            found[entry.name] = entry.value
    return dict(sorted(found.items()))


def names(room: str) -> list[str]:
    """Return the names of a room's members, sorted. Nothing is imported."""
    return list(modules(room))


def get(room: str, name: str) -> Any:
    """Import a member and return its public object (for a casebook, its path).

    Raises UsageError where the name is unknown, naming those that exist, or where its module does not import, naming
    whose it is.
    """
    address = _find(room, name)
    if room in _YAML and ":" not in address:
        return Path(address)
    module, _, attribute = address.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for part in (attribute or name).split("."):
            value = getattr(value, part)
    # Other people's code may fail in any way; whatever it is, the message must say whose it was.
    except Exception as error:
        raise UsageError(
            f"the {ROOMS[room]} {name!r} ({address}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return value


def describe(room: str, name: str) -> str:
    """Return the first sentence of a member's docstring (of a casebook, its title) without importing it."""
    address = _find(room, name)
    if room in _YAML:
        return _casebook_title(Path(address), room) if Path(address).is_file() else f"from {address}"
    module, _, attribute = address.partition(":")
    source = _source(module)
    if source is None:
        return f"from {module}"
    tree = _tree(source)
    wanted = attribute or name
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == wanted:
            return _first_sentence(ast.get_docstring(node) or ast.get_docstring(tree) or "")
    return _first_sentence(ast.get_docstring(tree) or "")


def _find(room: str, name: str) -> str:
    members = modules(room)
    if name not in members:
        raise UsageError(f"there is no {ROOMS[room]} {name!r}; there are {', '.join(members) or 'none'}")
    return members[name]


def _folders(room: str) -> Iterator[Path]:
    import probe

    seen: set[Path] = set()
    for root in probe.__path__:
        folder = Path(root, _WITHIN.get(room, ""), room)
        if folder.is_dir() and folder.resolve() not in seen:
            seen.add(folder.resolve())
            yield folder


def _files(room: str) -> Iterator[Path]:
    for folder in _folders(room):
        if room in _YAML:
            found = folder.glob("*.yaml") if room == "published" else folder.glob("*/*.yaml")
            own = (path for path in found if room == "published" or path.stem == path.parent.name)
            yield from sorted(path for path in own if not path.name.startswith("_"))
        else:
            yield from sorted(path for path in folder.glob("*.py") if _is_member(room, path))


def _address(room: str, path: Path) -> str:
    within = f"{_WITHIN[room]}.{room}" if room in _WITHIN else room
    return str(path) if room in _YAML else f"probe.{within}.{path.stem}"


def _is_member(room: str, path: Path) -> bool:
    """Return whether a file holds a public object of its own name that is marked as its room's kind."""
    if path.name.startswith("_"):
        return False
    known = _MARKS.get(room)
    for node in _tree(path).body:
        match node:
            case ast.ClassDef(name=name, bases=marks) | ast.FunctionDef(name=name, decorator_list=marks):
                if name == path.stem and (known is None or not {*known}.isdisjoint(map(_last_name, marks))):
                    return True
    return False


def _last_name(node: ast.expr) -> str:
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _tree(path: Path) -> ast.Module:
    return _parsed(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _parsed(path: Path, changed_ns: int) -> ast.Module:
    """Parse a file as it was when it last changed: a list asks for each of them many times."""
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{path} is not Python: {error}") from error


@functools.lru_cache(maxsize=64)
def _offered(group: str, ask: Callable[..., Iterable[EntryPoint]], installed: object) -> tuple[EntryPoint, ...]:
    """Return what other packages offer: each question reads a file of every package, and a casebook asks dozens."""
    return tuple(ask(group=group))


def _installed() -> tuple[tuple[str, int], ...]:
    """Say where packages lie and when each place last changed: what they offer is asked again after that."""
    places = ((path, Path(path)) for path in sys.path)
    return tuple((name, path.stat().st_mtime_ns if path.exists() else 0) for name, path in places)


def _owner(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist else "a package"


def _source(module: str) -> Path | None:
    # find_spec on a dotted name imports its parents, so only the top level is asked.
    top, *rest = module.split(".")
    if top == "probe":
        import probe

        roots = list(probe.__path__)
    else:
        spec = importlib.util.find_spec(top)
        if spec is None:
            return None
        if not rest:
            return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
        roots = list(spec.submodule_search_locations or [])
    for root in roots:
        for candidate in (Path(root, *rest).with_suffix(".py"), Path(root, *rest, "__init__.py")):
            if candidate.is_file():
                return candidate
    return None


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    end = re.search(r"(?<!e\.g)(?<!i\.e)(?<! al)\.(?=\s|$)", paragraph)
    return paragraph[: end.end()] if end else paragraph


def _casebook_title(path: Path, room: str) -> str:
    """Return a casebook's question, and of a published figure whether it was run."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r"^(?:title|question|description):\s*(?![>|])(.+)$", text, re.MULTILINE)
    title = found[1].strip().strip("\"'") if found else ""
    state = re.search(r"^ +state:\s*(?![>|])(.+)$", text, re.MULTILINE)
    return f"{title} [{state[1].strip()}]" if room == "published" and state else title

"""YAML as a person reads it: no aliases, no tags, no duplicate keys, no surprises, and a place for every value.

A subset of YAML 1.2's core schema over PyYAML's parser. Plain YAML 1.1 reads `no` as False, `1e-3` as text, `12:30:45`
as 45045 and `010` as 8, lets a later duplicate key win, and expands aliases without bound; here `no`, `12:30:45` and
`010` are text, `1e-3` is a number, and the rest is refused.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from yaml.composer import Composer
from yaml.resolver import Resolver

from probe.errors import CasebookError

MAX_BYTES: Final = 1 << 16
"""Largest text that is read."""
MAX_DEPTH: Final = 32
"""Deepest nesting of lists and mappings."""
MAX_NODES: Final = 3_000
"""Most values in one text."""
MAX_MESSAGE: Final = 1_000
"""Most characters of what an error says is wrong; a text's own words in it may be of any length."""

_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""What an escape can write and no file, name or message can hold: a NUL, half of a surrogate pair."""
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})\Z")
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][-+]?[0-9]{1,3})?\Z")
_CORE_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "!")

Path = tuple[str | int, ...]


@dataclass
class Document:
    """A parsed text: its value, and where each part of it stands."""

    value: Any
    """Dicts, lists, strings, numbers, booleans and None."""
    source: str
    """Name of the text, for messages."""
    places: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Line and column (both from 1) of each value, by its path of keys and indices."""

    def error(self, path: Path, message: str) -> CasebookError:
        """Return an error that points at `path`, or at the nearest place above it that the text has."""
        place = path
        while place not in self.places and place:
            place = place[:-1]
        line, column = self.places.get(place, (1, 1))
        dotted = ".".join(_cut(str(part), 100) for part in path)
        return CasebookError(
            f"{self.source}:{line}:{column}: {dotted + ': ' if dotted else ''}{_cut(message, MAX_MESSAGE)}"
        )


def parse(text: str | bytes, source: str) -> Document:
    """Parse `text`; raises CasebookError with file, line and column for anything outside the subset."""
    document = Document(None, source)
    if len(text) > MAX_BYTES:
        raise document.error((), f"larger than {MAX_BYTES} bytes")
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        node = _Composed(_checked_events(decoded, source)).get_single_node()
    except UnicodeDecodeError as error:
        raise document.error((), f"not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise CasebookError(f"{source}:{line}:{column}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise document.error((), f"not valid YAML: {' '.join(str(error).split())}") from None
    if node is None:
        raise document.error((), "empty; expected a mapping")
    document.value = _convert(node, (), document)
    return document


class _Composed(Composer, Resolver):
    """Makes nodes of events that were read and checked, so that no text is read twice."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        Composer.__init__(self)
        Resolver.__init__(self)
        # All of them first: what is refused further down is refused before anything recursive begins.
        self._events = deque(events)

    def check_event(self, *choices: type[yaml.Event]) -> bool:
        return bool(self._events) and (not choices or isinstance(self._events[0], choices))

    def peek_event(self) -> yaml.Event | None:
        return self._events[0] if self._events else None

    def get_event(self) -> yaml.Event | None:
        return self._events.popleft() if self._events else None


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _checked_events(text: str, source: str) -> Iterator[yaml.Event]:
    """Yield the events of a text; refuse aliases, tags and excess depth."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark = event.start_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        message = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            message = "anchors and aliases are not allowed; write the value out"
        elif isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent):
            nodes += 1
            if event.tag is not None and event.tag not in _CORE_TAGS:
                message = f"the tag {event.tag!r} is not allowed"
            elif nodes > MAX_NODES:
                message = f"more than {MAX_NODES} values"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                message = f"nested deeper than {MAX_DEPTH} levels"
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if message:
            raise CasebookError(f"{source}:{line}:{column}: {_cut(message, MAX_MESSAGE)}")
        yield event


def _convert(node: yaml.Node, path: Path, document: Document) -> Any:
    document.places[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_convert(child, (*path, i), document) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                document.places[(*path, "?")] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
                raise document.error((*path, "?"), "a key must be a word")
            key = str(key_node.value)
            if _NO_CHARACTER.search(key):
                raise document.error((*path, "?"), "a key holds a character that no text has (U+0000, or a surrogate)")
            if key in mapping:
                document.places[(*path, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
                raise document.error((*path, key), "this key stands twice")
            mapping[key] = _convert(value_node, (*path, key), document)
            # An error about a key's value is easiest found at the key.
            document.places[(*path, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        return mapping
    return _scalar(node, path, document)


def _scalar(node: yaml.Node, path: Path, document: Document) -> Any:
    text = str(node.value)
    if getattr(node, "style", None) is not None or node.tag == "!":
        if _NO_CHARACTER.search(text):
            raise document.error(path, "holds a character that no text has (U+0000, or a surrogate)")
        return text
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.match(text):
        return int(text)
    if text not in ("", "+", "-") and _NUMBER.match(text) and re.search(r"[0-9]", text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise document.error(path, f"the number {text} is out of range")
        return number
    return text

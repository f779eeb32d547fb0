"""A user's JSON Lines: every line checked, and what is wrong said with file, line and field."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from probe.errors import NotAvailable, UsageError
from probe.workloads.own_file import check_own_file


class Line(NamedTuple):
    """One line: an object, and where it stands."""

    file: str
    """The file, as it was given."""
    number: int
    """Number of the line, from 1."""
    value: dict[str, Any]
    """The object."""

    def error(self, field: str, message: str) -> UsageError:
        """Return an error that names file, line and field."""
        return UsageError(f"{self.file}:{self.number}: {field}: {message}")

    def text(self, field: str, *, needed: bool = True) -> str | None:
        """Return a field's text, not empty; None where it is not needed and absent."""
        if field not in self.value and not needed:
            return None
        value = self.value.get(field)
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, f"expected text that is not empty, got {_shown(value)}")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        """Return a field's list of texts; empty where it is absent."""
        value = self.value.get(field, [])
        if not isinstance(value, list) or not all(isinstance(each, str) and each.strip() for each in value):
            raise self.error(field, f"expected a list of texts that are not empty, got {_shown(value)}")
        return tuple(value)

    def pairs(self, field: str) -> dict[str, Any]:
        """Return a field's object; empty where it is absent."""
        value = self.value.get(field, {})
        if not isinstance(value, dict):
            raise self.error(field, f"expected an object, got {_shown(value)}")
        return value


def read_lines(path: str, fields: Collection[str], *, least: int = 1) -> list[Line]:
    """Read a file of JSON objects, one a line, empty lines aside.

    Raises NotAvailable for a file that cannot be read, UsageError with file, line and field for a line that is no JSON
    object, has a field twice or one that is not among `fields`, and where there are fewer than `least` lines.
    """
    try:
        check_own_file(path)
        # Lines end at line feeds alone: JSON may hold any other character that ends a line elsewhere.
        raw = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise NotAvailable(f"{path}: {error.strerror or error}") from None
    lines = [_line(path, number, text, fields) for number, text in enumerate(raw, 1) if text.strip()]
    if len(lines) < least:
        raise UsageError(f"{path}: the file holds {len(lines)} lines, and {least} are needed")
    return lines


def _line(path: str, number: int, raw: bytes, fields: Collection[str]) -> Line:
    def at(message: str) -> UsageError:
        return UsageError(f"{path}:{number}: {message}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise at(f"{name}: stands twice")
        return dict(pairs)

    def no_number(name: str) -> Any:
        raise at(f"{name} is not JSON")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_constant=no_number)
    except UnicodeDecodeError as error:
        raise at(f"not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise at(f"not JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise at("nested too deeply") from None
    if not isinstance(value, dict):
        raise at(f"expected an object, got {_shown(value)}")
    for name in value:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(fields)}"
            raise at(f"{name}: unknown field; {hint}")
    return Line(path, number, value)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not None else "nothing"
    return text if len(text) <= 60 else f"{text[:60]}…"

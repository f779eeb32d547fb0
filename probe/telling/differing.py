"""Where two records say different things."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return each key in which two records differ, and what each says there.

    Keys of records within records join by ` · `; one of a list is called by its name, or its number.
    """
    sides = [dict(_flat(record, "")) for record in (first, second)]
    keys = list(dict.fromkeys(key for side in sides for key in side))
    return [(key, *(side.get(key, "") for side in sides)) for key in keys if sides[0].get(key) != sides[1].get(key)]  # type: ignore[misc]


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name} · {key}" if name else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{name} · {item.get('name') or number}")
    elif value not in (None, "", [], {}):
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

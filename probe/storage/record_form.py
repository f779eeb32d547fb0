"""What the record of a run is when a run wrote it; the explorer, which shows what it can of anything, does without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from probe.errors import StoreCorrupt

_KINDS: Final[dict[str, type | tuple[type, ...]]] = {
    "status": str,
    "identity": dict,
    "casebook": (dict, str),
    "provenance": dict,
    "model_card": dict,
    "command": str,
    "stages": dict,
    "failed": list,
    "expected": dict,
    "success_rules": list,
    "files": dict,
}
"""Kinds of what stands in a record, each of which may be absent or null."""

_FAILED: Final = {"unit": str, "why": str}
_EXPECTED: Final = {"of": str, "differs_in": list, "results": list}
_RESULT: Final = {"expected": str, "met": bool, "found": str}


def check_record(record: Mapping[str, Any], name: str) -> None:
    """Raise StoreCorrupt, naming the entry, where a record is not of the kinds that a run writes."""

    def held(where: str, value: Any, kinds: Mapping[str, type]) -> None:
        if not isinstance(value, dict) or not all(isinstance(value.get(key), kind) for key, kind in kinds.items()):
            raise StoreCorrupt(f"{name}: {where} is not what a run writes there")

    for key, kind in _KINDS.items():
        if record.get(key) is not None and not isinstance(record[key], kind):
            raise StoreCorrupt(f"{name}: {key} is not what a run writes there")
    for at, failed in enumerate(record.get("failed") or ()):
        held(f"failed.{at}", failed, _FAILED)
    for stage, facts in (record.get("stages") or {}).items():
        held(f"stages.{stage[:100]}", facts, {})
    if expected := record.get("expected"):
        held("expected", expected, _EXPECTED)
        for at, result in enumerate(expected["results"]):
            held(f"expected.results.{at}", result, _RESULT)

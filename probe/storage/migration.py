"""Traces of earlier forms, read as what the present form would say of them. Nothing on the disk is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from probe.storage.manifest import FORMAT, check_format

About = dict[str, Any]


def migrated(about: About, sample: Callable[[], About], name: str) -> About:
    """Return what a unit of any earlier format is, in the present one's words; `sample` reads its `sample.json`.

    Raises StoreCorrupt where there is no format, or a newer one, TypeError or KeyError where it is not a unit.
    """
    check_format(about.get("format"), name)
    about = dict(about)
    while about["format"] < FORMAT:
        about = _TO_NEXT[about["format"]](about, sample)
    return about


def _from_1(about: About, sample: Callable[[], About]) -> About:
    """Format 2 says how many queries were seen, how layers attend, where numbers were bad, and what was left out."""
    outcome = about["outcome"]
    # The last token of an answer is produced and never put through.
    decoded = 0 if outcome is None else max(0, len(outcome["response_tokens"]) - 1)
    added = {"num_queries": len(sample()["tokens"]) + decoded, "attention": {}, "non_finite": [], "private": False}
    return {**added, **about, "format": 2}


_TO_NEXT: Final[dict[int, Callable[[About, Callable[[], About]], About]]] = {1: _from_1}

"""Verdicts in words and as signs, so that none is told by colour alone."""

from __future__ import annotations

from typing import Final

MEANINGS: Final = {
    "supported": "the data show it",
    "refuted": "the data rule it out, against the margin stated",
    "inconclusive": "the data do not settle it",
}
"""What each verdict says."""

SIGNS: Final = {"supported": "✓", "refuted": "✗", "inconclusive": "?"}
"""The sign that stands before its word."""

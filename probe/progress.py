"""What a run tells of how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Somebody who watches a run: a terminal, a notebook, a log."""

    def start(self, total: int) -> None:
        """`total` more units are to be read."""

    def advance(self, what: str) -> None:
        """One unit is done; `what` names it."""

    def message(self, text: str) -> None:
        """Something that a person should know."""

    def stop(self) -> None:
        """Nothing more comes."""


class Silent:
    """A progress that says nothing."""

    def start(self, total: int) -> None:
        """Say nothing."""

    def advance(self, what: str) -> None:
        """Say nothing."""

    def message(self, text: str) -> None:
        """Say nothing."""

    def stop(self) -> None:
        """Say nothing."""

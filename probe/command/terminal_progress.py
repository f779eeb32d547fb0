"""Progress of a run on a terminal: a bar with what runs now and the time left, plain lines elsewhere, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from probe.visible import visible

SECONDS_BETWEEN_LINES = 10.0
"""Plain lines come at most this often, besides every tenth of the work."""


class silent_progress:
    """Counts, and says nothing."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0

    def start(self, total: int) -> None:
        """`total` more units are to be read: a later stage is resolved only after an earlier one."""
        self.total += total

    def advance(self, what: str) -> None:
        """Count one unit as done; `what` names it."""
        self.done += 1

    def message(self, text: str) -> None:
        """Say something once."""

    def stop(self) -> None:
        """End; may be called twice."""


class plain_progress(silent_progress):
    """One line now and then, for a log file or a pipe."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._console = console
        self._clock = clock
        self._began = self._said = clock()
        self._tenth = 0

    def start(self, total: int) -> None:
        """Begin, or add to the total."""
        if not self.total:
            self._began = self._said = self._clock()
        super().start(total)

    def advance(self, what: str) -> None:
        """Count one unit, and say so every tenth of the work or every few seconds."""
        super().advance(what)
        now = self._clock()
        tenth = 10 * self.done // max(self.total, 1)
        if tenth > self._tenth or now - self._said >= SECONDS_BETWEEN_LINES:
            self._tenth, self._said = tenth, now
            left = (now - self._began) / self.done * max(self.total - self.done, 0)
            self._line(f"{self.done}/{self.total}  {what}, about {left:.0f} s left")

    def message(self, text: str) -> None:
        """Print a line."""
        self._line(text)

    def _line(self, text: str) -> None:
        self._console.print(visible(text), markup=False, highlight=False, soft_wrap=True)


class bar_progress(silent_progress):
    """A live bar on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)

    def start(self, total: int) -> None:
        """Show the bar, or lengthen it."""
        super().start(total)
        self._bar.update(self._task, total=self.total)
        self._bar.start()

    def advance(self, what: str) -> None:
        """Move the bar by one and show what it is at."""
        super().advance(what)
        self._bar.update(self._task, advance=1, description=escape(visible(what)))

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(visible(text), markup=False, highlight=False)

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def terminal_progress(console: Console, *, quiet: bool = False) -> silent_progress:
    """Return the progress that fits: none where `quiet`, a bar on a terminal, lines elsewhere."""
    if quiet:
        return silent_progress()
    return bar_progress(console) if console.is_terminal else plain_progress(console)

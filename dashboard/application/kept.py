"""What was made once is not made again while the run that it was made from has not grown."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

from probe.dashboard.application.opened import OpenedRun

T = TypeVar("T")

_MOST: Final = 64


class Kept:
    """Keeps a page's figures, those used last."""

    def __init__(self) -> None:
        self._made: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, run: OpenedRun, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returned for this key the last time, made anew after the run has grown."""
        full = (run.name, run.version, key)
        with self._lock:
            if full in self._made:
                self._made.move_to_end(full)
                found: T = self._made[full]
                return found
        made = make()
        with self._lock:
            self._made[full] = made
            while len(self._made) > _MOST:
                self._made.popitem(last=False)
        return made

"""Many reads at once, where each is a journey over a network."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

_AT_ONCE: Final = 16

Item = TypeVar("Item")
Value = TypeVar("Value")


def all_of(read: Callable[[Item], Value], items: Iterable[Item], *, far: bool) -> Iterator[Value]:
    """Yield what `read` returns of each item, in their order; where it is `far`, sixteen are on their way at once."""
    if not far:
        yield from map(read, items)
        return
    waiting: deque[Future[Value]] = deque()
    try:
        for item in items:
            waiting.append(_pool().submit(read, item))
            if len(waiting) == _AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for each in waiting:
            each.cancel()


@functools.cache
def _pool() -> Any:
    return ThreadPoolExecutor(_AT_ONCE, "probe-far")

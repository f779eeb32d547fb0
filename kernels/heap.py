"""Giving memory back to the operating system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


def trim() -> None:
    """Return the heap's free pages to the operating system, where the C library can (glibc); otherwise do nothing.

    Temporaries of many sizes between a megabyte and the allocator's threshold leave the heap in pieces: without this
    a long scan kept gigabytes that it no longer used.
    """
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _libc() -> Any | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None

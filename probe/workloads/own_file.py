"""A file of the user's that a casebook names: a plain one, and not without end."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from probe.errors import NotAvailable

MOST_BYTES: Final = 1 << 30
"""No text that prompts are made of is larger."""


def check_own_file(path: str | Path) -> None:
    """Raise NotAvailable where a path leads to a device, a pipe or a file too large; OSError where to nothing."""
    state = Path(path).stat()
    if not stat.S_ISREG(state.st_mode):
        raise NotAvailable(f"{path}: it is no plain file")
    if state.st_size > MOST_BYTES:
        raise NotAvailable(f"{path}: larger than {MOST_BYTES:,} bytes")

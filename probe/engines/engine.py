"""How an engine is named."""

from __future__ import annotations

from typing import Final, get_args

from probe.errors import UsageError
from probe.kernels.engine import EngineName

NAMES: Final = ("local",)
"""The engines that there are."""


def check_engine(name: str) -> None:
    """Raise UsageError for an engine that there is not, and for what computes attention, which is another option."""
    if name in get_args(EngineName):
        raise UsageError(
            f"engine says who reads the units ({', '.join(NAMES)}); for what computes statistics of attention write "
            f"scan={name!r}, or --scan {name}"
        )
    if name not in NAMES:
        raise UsageError(f"there is no engine {name!r}; there are {', '.join(NAMES)}")

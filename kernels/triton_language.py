"""Triton where it is installed, so that every file of this folder imports without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    tl: Any

    def jit(function: Callable[..., Any]) -> Any:
        """Compile a function when it is first launched."""

else:
    try:
        import triton.language as tl
        from triton import jit
    except ImportError:
        tl = None

        def jit(function):
            """Leave the function as it is: nothing can launch it."""
            return function

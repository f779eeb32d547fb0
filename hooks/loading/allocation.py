"""Memory that is not there, called the same on every device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_OF_A_CPU = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


@contextmanager
def allocation_errors() -> Iterator[None]:
    """Raise `torch.OutOfMemoryError` within the block for a CPU's memory too, which torch reports as a RuntimeError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not any(words in str(error) for words in _OF_A_CPU):
            raise
        raise torch.OutOfMemoryError(str(error)) from error

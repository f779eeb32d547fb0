"""Functions of tensors compiled for the CPU by torch's Inductor, or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import cast

import torch
from torch import Tensor

from probe.errors import UsageError

Program = Callable[..., list[Tensor]]

log = logging.getLogger(__name__)

_OPTIONS = {
    # Called without Python's lock held, so that blocks run side by side, each on one thread.
    "cpp_wrapper": True,
    "cpp.threads": 1,
    "compile_threads": 1,
    "fx_graph_cache": True,
}
_FAILURES = (RuntimeError, OSError, ImportError, AssertionError, AttributeError, TypeError, ValueError, LookupError)
_programs: dict[Hashable, Program | None] = {}
_lock = threading.Lock()


@cache
def has_compiler() -> bool:
    """Whether a C++ compiler is found, where Inductor looks for one: `CXX`, g++, clang++."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def program(key: Hashable, function: Program, example: Sequence[Tensor]) -> Program | None:
    """Return the compiled function, compiled at the first call with this key; None where that fails, which is logged.

    The function takes tensors shaped like the examples and depends on nothing else. Inductor keeps what it compiles on
    disk. Before it is first used a program must give what the function gives for the example.
    """
    with _lock:
        if key not in _programs:
            try:
                _programs[key] = _compile(function, list(example))
            except UsageError:
                raise
            except _FAILURES as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                log.warning("the scan goes on without a compiler, slower and with the same numbers: %s", reason)
                _programs[key] = None
        return _programs[key]


def _compile(function: Program, example: list[Tensor]) -> Program:
    with warnings.catch_warnings():
        # Those of torch about itself, at import and later, are nobody's here.
        warnings.simplefilter("ignore")
        # Importing these takes a second, which only those pay who compile.
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx
        from torch.fx.experimental.proxy_tensor import make_fx

        with config.patch(_OPTIONS), torch.no_grad():
            graph = make_fx(function, tracing_mode="fake")(*example)
            wanted = function(*example)
            compiled = cast(Program, compile_fx(graph, example))
            found = compiled(*example)
    for a, b in zip(found, wanted, strict=True):
        if a.is_floating_point() and not torch.allclose(a, b.to(a.dtype), rtol=1e-3, atol=1e-4, equal_nan=True):
            raise RuntimeError("what was compiled gives other numbers")
    return compiled

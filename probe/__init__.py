"""Find out why a language model fails on long context.

Public names arrive when they are first used, so that `import probe` stays light: opening a trace needs no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In a checkout the rooms stand beside this folder rather than in it; a wheel holds them inside.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and str(_checkout) not in __path__:
    __path__.append(str(_checkout))

_PUBLIC = {
    "load": "probe.capture",
    "trace": "probe.capture",
    "trace_over_ranks": "probe.ranked_capture",
    "open": "probe.storage.trace_store",
    "merge": "probe.storage.merging",
    "run": "probe.player",
    "compare_scores": "probe.score_agreement",
    "Finding": "probe.finding",
    "Interval": "probe.finding",
    "Sample": "probe.sample",
    "Span": "probe.sample",
    "Trace": "probe.storage.trace_store",
    "Run": "probe.storage.trace_store",
    "ProbeError": "probe.errors",
}
"""Names that are no member of a room; a room's members are found by a scan of its folder."""

_ROOMS = ("analyses", "workloads", "hooks")
"""Rooms whose members are public names: `probe.attention_sinks`, `probe.needle`, `probe.ablate_heads`."""


def _public() -> dict[str, str]:
    discovery = importlib.import_module("probe.discovery")
    found = {name: module for room in _ROOMS for name, module in discovery.modules(room).items()}
    return _PUBLIC | {name: module for name, module in found.items() if module.startswith("probe.")}


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    # `from probe import discovery` asks here first: a module of ours is no member, and a scan reads a hundred files.
    if module is None and not name.startswith("_") and not _is_module(name):
        module = _public().get(name)
    if module is None:
        raise AttributeError(f"module 'probe' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def _is_module(name: str) -> bool:
    return any(Path(root, f"{name}.py").is_file() or Path(root, name).is_dir() for root in __path__)


def __dir__() -> list[str]:
    # Neither what this file imports nor the folders that happen to have been loaded.
    return sorted({*_public(), *(name for name in globals() if name.startswith("__"))})

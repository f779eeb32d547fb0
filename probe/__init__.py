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
    "open": "probe.storage.trace_store",
    "merge": "probe.storage.merging",
    "run": "probe.player",
    "Finding": "probe.finding",
    "Interval": "probe.finding",
    "Sample": "probe.sample",
    "Span": "probe.sample",
    "Trace": "probe.storage.trace_store",
    "Run": "probe.storage.trace_store",
    "ProbeError": "probe.errors",
    "needle": "probe.workloads.needle",
    "ablate_heads": "probe.hooks.ablate_heads",
    "attention_sinks": "probe.analyses.attention_sinks",
    "effective_length": "probe.analyses.effective_length",
    "head_ablation": "probe.analyses.head_ablation",
    "position_bias": "probe.analyses.position_bias",
    "retrieval_heads": "probe.analyses.retrieval_heads",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'probe' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

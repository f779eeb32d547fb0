"""MiniCache changes nothing of one whole forward; what it does to later ones, `test_merge_layers.py` defines."""

from __future__ import annotations

from typing import Any

from probe.hooks.merge_layers import merge_layers
from tests.interventions.dense_model import plain

EXAMPLES: list[merge_layers] = []
IDENTITIES = [merge_layers(start=0), merge_layers(kept=1.0, start=0)]


def definition(asked: merge_layers, model: Any) -> Any:
    """One forward attends as the model does."""
    _ = asked, model
    return plain

"""How far back each attention layer sees, as its calls say it."""

from __future__ import annotations

import weakref

import torch
from transformers import PreTrainedModel

from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import tap
from probe.hooks.loading.placement import input_device
from probe.kernels.call import Call

_known: weakref.WeakKeyDictionary[PreTrainedModel, dict[int, int | None]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def layer_windows(model: PreTrainedModel) -> dict[int, int | None]:
    """Return, for each layer that attends, how many positions a query sees, its own included; None where all.

    Found by running two tokens through the model once, and then remembered.
    """
    if model not in _known:
        seen = _windows()
        with attached(model, seen, alone=True):
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=input_device(model)), use_cache=False)
        _known[model] = seen.found
    return _known[model]


class _windows(tap):
    wants_calls = True

    def __init__(self) -> None:
        self.found: dict[int, int | None] = {}

    def call(self, sample: int, call: Call) -> None:
        self.found[call.layer] = call.window

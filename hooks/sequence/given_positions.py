"""The positions of a chunk's tokens, for models that count them from 0 in every forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from probe.hooks.loading.placement import input_device
from probe.hooks.sequence.continuation_repair import continuation_repair


class given_positions(continuation_repair):
    """Hands over the positions, as transformers' own `generate` does (Bamba needs it)."""

    words: ClassVar[str] = "its positions given, as generate gives them"
    always: ClassVar[bool] = False

    def applies(self, model: PreTrainedModel) -> bool:
        """Whether the forward takes positions."""
        return "position_ids" in inspect.signature(model.forward).parameters

    @contextmanager
    def around(self, model: PreTrainedModel, num_past: int, num_tokens: int) -> Iterator[dict[str, Any]]:
        """Give the positions after `num_past`."""
        yield {"position_ids": torch.arange(num_past, num_past + num_tokens, device=input_device(model))[None]}

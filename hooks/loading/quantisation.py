"""How a model's weights are quantised, in words for a trace."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def quantisation(model: PreTrainedModel) -> dict[str, Any] | None:
    """Return what the checkpoint's configuration says of its quantisation, and how many parameters hold what.

    `parameters` counts those that are not plain floating point by the name of their class, or of their dtype. None for
    a model of which neither says anything. What the numbers are is in the hash of the weights.
    """
    counts = Counter(filter(None, map(_kind, model.parameters())))
    # What torch's own quantised layers hold is packed into objects that are no parameters.
    counts.update(f"{type(m).__module__}.{type(m).__name__}" for m in model.modules() if hasattr(m, "_packed_params"))
    config = getattr(model.config, "quantization_config", None)
    if config is None and not counts:
        return None
    said = config if isinstance(config, dict) or config is None else config.to_dict()
    plain = None if said is None else json.loads(json.dumps(said, default=str, sort_keys=True))
    method = None if plain is None else plain.get("quant_method")
    return {
        "method": None if method is None else str(method),
        "config": plain,
        "parameters": dict(sorted(counts.items())),
    }


def _kind(parameter: nn.Parameter) -> str | None:
    if type(parameter) is not nn.Parameter:
        return type(parameter).__name__
    return None if parameter.dtype in _PLAIN else str(parameter.dtype).removeprefix("torch.")

"""Which peft adapters (LoRA and its kin) are in a model, and which of them take part."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

_SAID = ("r", "lora_alpha", "use_dora", "use_rslora", "base_model_name_or_path", "revision")


def adapters(model: nn.Module) -> dict[str, Any] | None:
    """Return the adapters by name, those that are active, and those merged into the weights; None where none is.

    An adapter that was merged and unloaded has become the weights themselves, whose hash differs, and is none.
    """
    layers = list(_tuner_layers(model))
    if not layers:
        return None
    configs = getattr(model, "peft_config", None) or {}
    return {
        "active": sorted({name for layer in layers for name in layer.active_adapters if not layer.disable_adapters}),
        "merged": sorted({name for layer in layers for name in layer.merged_adapters}),
        "num_modules": len(layers),
        "known": {name: _described(config, name, layers) for name, config in sorted(configs.items())},
        "peft": str(getattr(sys.modules.get("peft"), "__version__", "")),
    }


def _tuner_layers(model: nn.Module) -> Iterator[Any]:
    # Where peft was never imported no module is one of its own.
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is not None:
        yield from (module for module in model.modules() if isinstance(module, tuners.BaseTunerLayer))


def _described(config: Any, name: str, layers: list[Any]) -> dict[str, Any]:
    kind = getattr(config, "peft_type", None)
    said: dict[str, Any] = {"type": str(getattr(kind, "value", kind))}
    said |= {key: value for key in _SAID if (value := getattr(config, key, None)) is not None}
    scalings = {float(s) for layer in layers if (s := getattr(layer, "scaling", {}).get(name)) is not None}
    return said | ({"scaling": sorted(scalings)} if scalings else {})

"""A model object that somebody has, in whatever it is wrapped, and the transformers model inside; nothing is copied."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from probe.errors import NotReproducible, UsageError
from probe.hooks.loading.compiled import compiled_parts, uncompiled_module

# Adapters that do more than change modules of the model: their own forward is needed, which cannot be watched.
_NEEDS_ITS_OWN_FORWARD = ("XLORA", "POLY")
_SCALED_TOGETHER = "torch.ao.nn.quantized.dynamic"


def transformers_model(model: Any) -> PreTrainedModel:
    """Return the transformers model inside `torch.compile`'s, peft's and torch's data-parallel wrappers.

    The same object that the wrapper holds: no weight is copied, and adapters stay in place. Raises `UsageError` for
    what holds no transformers model, `NotReproducible` for adapters that add tokens of their own (prompt and prefix
    tuning) or need a forward of their own.
    """
    inside = model
    while isinstance(inside, nn.Module) and not isinstance(inside, PreTrainedModel):
        before, inside = inside, _opened(inside)
        if inside is before:
            break
    if not isinstance(inside, PreTrainedModel):
        raise UsageError(
            f"a model name or a transformers model is needed, not {type(model).__module__}.{type(model).__name__}"
        )
    if compiled_parts(inside) and "flex_attention" in str(inside.config._attn_implementation):
        raise NotReproducible(
            f"{type(inside).__name__}: it is compiled by torch.compile and attends by flex_attention; compiled code "
            "cannot be watched, and flex_attention needs it: give the model as it was before torch.compile"
        )
    if any(type(module).__module__.startswith(_SCALED_TOGETHER) for module in inside.modules()):
        raise NotReproducible(
            f"{type(inside).__name__}: torch's dynamic quantisation scales all tokens of a forward by their largest "
            "value, so what is computed for a token depends on which others come in the same chunk"
        )
    return inside


def _opened(module: nn.Module) -> nn.Module:
    """Return what a wrapper holds; a module that is no known wrapper as it is."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(module, peft.PeftModel):
        _check_adapters(module)
        base: nn.Module = module.get_base_model()
        return base
    if peft is not None and isinstance(module, peft.PeftMixedModel):
        mixed: nn.Module = module.base_model.model
        return mixed
    opened: nn.Module = uncompiled_module(module)
    return opened


def _check_adapters(model: Any) -> None:
    for name in model.active_adapters:
        config = model.peft_config[name]
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if config.is_prompt_learning:
            raise NotReproducible(
                f"{type(model).__name__}: its adapter {name!r} ({kind}) puts keys or tokens of its own before the "
                "prompt, so that positions would not be the prompt's"
            )
        if kind in _NEEDS_ITS_OWN_FORWARD or getattr(config, "alora_invocation_tokens", None):
            raise NotReproducible(
                f"{type(model).__name__}: its adapter {name!r} ({kind}) takes part only in peft's own forward, "
                "which cannot be watched"
            )

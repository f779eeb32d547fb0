"""Models that torch.compile compiled, which run uncompiled while the toolkit runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from probe.hooks.attention.interface import loaded_attention


def compiled_parts(model: nn.Module) -> list[str]:
    """Return the names of the modules that torch.compile compiled, the whole model as its class's name."""
    return [path or type(model).__name__ for path, module in model.named_modules() if _is_compiled(module)]


def uncompiled_module(module: Any) -> Any:
    """Return the module that `torch.compile(module)` wrapped; anything else as it is."""
    return module._orig_mod if _is_wrapper(module) else module


@contextmanager
def uncompiled(model: PreTrainedModel) -> Iterator[None]:
    """Within the block nothing that Dynamo compiled runs compiled: compiled code need not see hooks set later.

    By its default it does not look whether a module has got hooks since. Uncompiled code gives the model's numbers as
    transformers computes them; compiled code gives the same up to rounding. transformers' flex attention, which is
    compiled to need no n × n matrix, is left compiled.
    """
    if "flex_attention" in loaded_attention(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _is_compiled(module: nn.Module) -> bool:
    forward = vars(module).get("forward", type(module).forward)
    return (
        _is_wrapper(module)
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(forward, "_torchdynamo_orig_callable")
    )


def _is_wrapper(module: Any) -> bool:
    return isinstance(module, nn.Module) and "_orig_mod" in vars(module).get("_modules", {})

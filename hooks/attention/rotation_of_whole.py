"""Rotary positions of a prompt's chunks as those of the whole prompt, where they depend on its length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.hooks.attention.interface import text_decoder


@contextmanager
def rotated_as_whole(model: PreTrainedModel, num_tokens: int) -> Iterator[None]:
    """Within the block tokens are rotated as in a forward of `num_tokens` tokens at once.

    LongRoPE takes other frequencies beyond its first training length, dynamic NTK scaling others for each length: the
    first chunk of a long prompt, by itself, would be rotated otherwise than in the whole. The rotary embedding is told
    of the last position beside those of the chunk. Dynamic scaling also remembers the longest sequence that it saw:
    what it remembers is put back to how the model was made when the block begins.
    """
    with ExitStack() as stack:
        for module in text_decoder(model).modules():
            if not _depends_on_length(module):
                continue
            _forget(module)
            stack.callback(module.register_forward_pre_hook(_Last(num_tokens - 1), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(_without_last, with_kwargs=True).remove)
        yield


def _depends_on_length(module: nn.Module) -> bool:
    kinds = getattr(module, "rope_type", None)
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(kind, str) and (kind == "longrope" or "dynamic" in kind) for kind in kinds)


def _forget(module: nn.Module) -> None:
    """Put back the frequencies of short sequences; the next forward grows them as it needs."""
    of: Any = module
    for name in [name for name, _ in module.named_buffers(recurse=False) if name.endswith("original_inv_freq")]:
        prefix = name.removesuffix("original_inv_freq")
        if hasattr(module, f"{prefix}inv_freq"):
            setattr(module, f"{prefix}inv_freq", getattr(module, name).clone())
        if hasattr(module, f"{prefix}max_seq_len_cached"):
            setattr(module, f"{prefix}max_seq_len_cached", of.original_max_seq_len)


class _Last:
    def __init__(self, position: int) -> None:
        self.position = position

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # (x, position_ids), or the positions by name.
        positions = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        last = torch.full_like(positions[..., :1], self.position)
        longer = torch.cat([positions, torch.maximum(last, positions.amax())], dim=-1)
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": longer}
        return (args[0], longer, *args[2:]), kwargs


def _without_last(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    if isinstance(output, Tensor):
        return output[..., :-1, :]
    return tuple(each[..., :-1, :] for each in output)

"""What a model and its tokenizer are, as hashes of their content."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from probe.hooks.loading.placement import state_tensors


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every tensor of the state, in the order of their names.

    The same wherever a tensor lies: on a device, in the host's memory, on disk. Of a quantised tensor every part
    counts: its codes, its scales, its zero points.
    """
    digest = hashlib.sha256()
    for name, value in state_tensors(model):
        leaves = [value] if isinstance(value, Tensor) else tree_leaves(value)
        for leaf in leaves:
            _add(digest, name, leaf)
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        digest.update(json.dumps([name, str(value)]).encode())
        return
    digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
    flat: Any = value.detach()
    if hasattr(flat, "__tensor_flatten__"):
        parts, _ = flat.__tensor_flatten__()
        digest.update(json.dumps([type(flat).__name__, sorted(parts)]).encode())
        for part in sorted(parts):
            _add(digest, part, getattr(flat, part))
    elif flat.is_quantized:
        per_channel = flat.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
        scale = flat.q_per_channel_scales() if per_channel else torch.tensor(flat.q_scale())
        zero = flat.q_per_channel_zero_points() if per_channel else torch.tensor(flat.q_zero_point())
        for part, inner in (("codes", flat.int_repr()), ("scale", scale), ("zero_point", zero)):
            _add(digest, part, inner)
    else:
        flat = flat.to("cpu").contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 over the tokenizer's serialised form: its own JSON where it has one, else its sorted vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        text = backend.to_str()
    else:
        special = sorted(str(token) for token in getattr(tokenizer, "all_special_tokens", []))
        text = json.dumps([sorted(tokenizer.get_vocab().items()), special])
    return hashlib.sha256(text.encode()).hexdigest()

"""What a model and its tokenizer are, as hashes of their content."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every tensor of the state, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 over the tokenizer's serialised form: its own JSON where it has one, else its sorted vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        text = backend.to_str()
    else:
        special = sorted(str(token) for token in getattr(tokenizer, "all_special_tokens", []))
        text = json.dumps([sorted(tokenizer.get_vocab().items()), special])
    return hashlib.sha256(text.encode()).hexdigest()

"""Runs of keys that a query's own must be of: chunks of a layer's attention, and sequences packed into one."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from probe.kernels.call import Call


def chunk_of_keys(module: nn.Module, call: Call) -> Int[Tensor, "key"] | None:
    """Which chunk each of the call's keys is in, where the layer attends in chunks of a fixed length; else None.

    Chunks begin at the sample's first token (Llama 4's `chunked_attention`).
    """
    config: Any = getattr(module, "config", None)
    size, kinds = getattr(config, "attention_chunk_size", None), getattr(config, "layer_types", None)
    if not size or not kinds or not 0 <= call.layer < len(kinds) or kinds[call.layer] != "chunked_attention":
        return None
    return (torch.arange(call.num_keys, device=call.key.device) + call.key_start) // int(size)


def packed_sequences(position_ids: Any) -> Int[Tensor, "batch token"] | None:
    """Which of several packed sequences each token is in; None where the positions are those of one.

    A sequence begins where the position is not one more than that before, as transformers has it.
    """
    if not isinstance(position_ids, Tensor) or position_ids.ndim != 2:
        return None
    sequence = (torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1).cumsum(dim=-1)
    return sequence if bool(sequence[:, -1].any()) else None

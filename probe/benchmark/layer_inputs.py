"""Random queries, keys and values of one layer, as a hook would hand them over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probe.benchmark.result import LayerShape

if TYPE_CHECKING:
    from probe.kernels.call import Call

TOKEN_IDS = 32_000
"""Tokens are drawn from as many."""


def layer_call(shape: LayerShape, length: int, *, device: str, dtype: str, seed: int = 0) -> Call:
    """Return a causal call over `length` tokens with normal queries, keys and values."""
    import torch

    from probe.kernels.call import Call

    random = torch.Generator(device).manual_seed(seed)

    def normal(heads: int) -> torch.Tensor:
        size = (heads, length, shape.head_dim)
        return torch.randn(size, generator=random, device=device, dtype=getattr(torch, dtype))

    return Call(
        layer=0,
        query=normal(shape.heads),
        key=normal(shape.kv_heads),
        value=normal(shape.kv_heads),
        scale=shape.head_dim**-0.5,
        tokens=torch.randint(0, TOKEN_IDS, (length,), generator=random, device=device),
    )


def input_bytes(shape: LayerShape, length: int, width: int) -> int:
    """Return the size of queries, keys and values of `width` bytes a number."""
    return (shape.heads + 2 * shape.kv_heads) * length * shape.head_dim * width

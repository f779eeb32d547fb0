"""Attention by the fused operators that SDPA is made of, which hand over the log-sum-exp that SDPA throws away."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

_CPU_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_MOST_CHANNELS = 256


def can_flash(
    query: Float[Tensor, "batch head query channel"],
    key: Float[Tensor, "batch kv_head key channel"],
    value: Float[Tensor, "batch kv_head key value_channel"],
) -> bool:
    """Whether `flash_attention` has an operator for these tensors: on a CPU, or on a CUDA device up to 256 channels."""
    if min(query.numel(), key.numel(), value.numel()) == 0 or query.shape[1] % key.shape[1]:
        return False
    if not query.dtype == key.dtype == value.dtype or not query.device == key.device == value.device:
        return False
    if query.device.type == "cpu":
        return query.dtype in _CPU_DTYPES
    # An AMD device calls itself CUDA too, and its operators differ.
    is_cuda = query.device.type == "cuda" and torch.version.cuda is not None
    widest = max(query.shape[-1], value.shape[-1])
    return is_cuda and query.dtype in (*_FLASH_DTYPES, torch.float32) and widest <= _MOST_CHANNELS


def flash_attention(
    query: Float[Tensor, "batch head query channel"],
    key: Float[Tensor, "batch kv_head key channel"],
    value: Float[Tensor, "batch kv_head key value_channel"],
    *,
    scale: float,
    causal: bool,
) -> tuple[Float[Tensor, "batch head query value_channel"], Float[Tensor, "batch head query"]]:
    """Attention of every query to every key, or to those up to its own where `causal`, and its log-sum-exp in nats.

    The log-sum-exp comes in float32 (float64 for float64). Grouped heads are not expanded. Raises `ValueError` where
    `can_flash` says no, and for `causal` over unlike lengths: the operators differ in which corner they align, and the
    CPU's is silently the wrong one for queries that come after a past (use `flash_attention_after_past`).
    """
    if not can_flash(query, key, value):
        raise ValueError(
            f"no fused operator for {tuple(query.shape)} × {tuple(key.shape)}, {query.dtype} on {query.device}"
        )
    if causal and query.shape[2] != key.shape[2]:
        raise ValueError(f"causal attention of {query.shape[2]} queries to {key.shape[2]} keys is not square")
    output, log_sum_exp = _operator(query, key, value, scale, causal)
    return output[..., : value.shape[-1]], log_sum_exp


def flash_attention_after_past(
    query: Float[Tensor, "batch head query channel"],
    key: Float[Tensor, "batch kv_head key channel"],
    value: Float[Tensor, "batch kv_head key value_channel"],
    *,
    scale: float,
) -> tuple[Float[Tensor, "batch head query value_channel"], Float[Tensor, "batch head query"]]:
    """Causal attention of queries that stand at the last of the keys' positions, and its log-sum-exp in nats.

    Past and diagonal block are two calls of `flash_attention`, merged by their log-sum-exps as the blocks of
    FlashAttention are (Dao et al. 2022, section 3.1; Rabe and Staats 2021): exact, and without a mask. In half
    precision each part's output is rounded before they are merged. Raises `ValueError` as `flash_attention` does.
    """
    num_past = key.shape[2] - query.shape[2]
    if num_past < 0:
        raise ValueError(f"{query.shape[2]} queries cannot stand at the last of {key.shape[2]} keys")
    if num_past == 0:
        return flash_attention(query, key, value, scale=scale, causal=True)
    past, past_lse = flash_attention(query, key[:, :, :num_past], value[:, :, :num_past], scale=scale, causal=False)
    own, own_lse = flash_attention(query, key[:, :, num_past:], value[:, :, num_past:], scale=scale, causal=True)
    share = torch.sigmoid(past_lse - own_lse)[..., None]
    merged = torch.lerp(own.to(share.dtype), past.to(share.dtype), share)
    return merged.to(query.dtype), torch.logaddexp(past_lse, own_lse)


def _operator(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp by the operator that the device has; the output may have channels of zeros at its end."""
    kind, aten = _kind(query), torch.ops.aten
    query, key, value = _of_one_width(query, key, value, multiple=1 if kind == "cpu" else 8)
    if kind == "cpu":
        found = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
        return found[0], found[1]
    if kind == "flash":
        found = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)
        return found[0], found[1]
    # The memory-efficient operator wants as many keys as queries: the groups' first heads, then their second ones, …
    group = query.shape[1] // key.shape[1]
    found = [
        aten._scaled_dot_product_efficient_attention(
            query[:, member::group], key, value, None, True, 0.0, causal, scale=scale
        )
        for member in range(group)
    ]
    output, log_sum_exp = (torch.stack([each[i] for each in found], dim=2).flatten(1, 2) for i in (0, 1))
    # It fills the log-sum-exp up to a multiple of 32 queries.
    return output, log_sum_exp[..., : query.shape[2]]


def _kind(query: Tensor) -> Literal["cpu", "flash", "efficient"]:
    if query.device.type == "cpu":
        return "cpu"
    has_flash = query.dtype in _FLASH_DTYPES and torch.cuda.get_device_capability(query.device) >= (8, 0)
    return "flash" if has_flash else "efficient"


def _of_one_width(query: Tensor, key: Tensor, value: Tensor, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fill the narrower of keys and values up with zeros: products and outputs stay what they are."""
    width = -(-max(key.shape[-1], value.shape[-1]) // multiple) * multiple
    if key.shape[-1] < width:
        query, key = (torch.nn.functional.pad(each, (0, width - each.shape[-1])) for each in (query, key))
    if value.shape[-1] < width:
        value = torch.nn.functional.pad(value, (0, width - value.shape[-1]))
    return query, key, value

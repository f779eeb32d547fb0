"""Attention in two parts is attention in one: output and log-sum-exp against float64, dense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from probe.kernels import flash_attention as module
from probe.kernels.flash_attention import can_flash, flash_attention, flash_attention_after_past


def drawn(*shape: int, seed: int, deviation: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * deviation).to(dtype)


def dense(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """In float64, with grouped heads repeated and the causal mask aligned at the last key."""
    group = query.shape[1] // key.shape[1]
    key, value = (each.to(dtype).repeat_interleave(group, dim=1) for each in (key, value))
    logits = query.to(dtype) @ key.transpose(2, 3) * scale
    if causal:
        past = key.shape[2] - query.shape[2]
        seen = torch.ones(logits.shape[-2:], dtype=torch.bool).tril(past)
        logits = logits.masked_fill(~seen, -torch.inf)
    return logits.softmax(dim=-1) @ value, logits.logsumexp(dim=-1)


@pytest.mark.parametrize("num_queries", [1, 2, 15, 129])
@pytest.mark.parametrize("num_past", [0, 1, 16, 300])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize(("width", "value_width"), [(32, 32), (20, 12), (7, 19)])
def test_queries_after_a_past_attend_as_dense_does(
    num_queries: int, num_past: int, heads: int, kv_heads: int, width: int, value_width: int
) -> None:
    query = drawn(1, heads, num_queries, width, seed=0, deviation=2)
    key = drawn(1, kv_heads, num_past + num_queries, width, seed=1, deviation=2)
    value = drawn(1, kv_heads, num_past + num_queries, value_width, seed=2)
    output, log_sum_exp = flash_attention_after_past(query, key, value, scale=0.3)
    expected, expected_lse = dense(query, key, value, 0.3, causal=True)
    assert output.shape == expected.shape
    in_single, _ = dense(query, key, value, 0.3, causal=True, dtype=torch.float32)
    allowed = max(1e-5, 2 * float((in_single - expected).abs().max()))
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=allowed)
    torch.testing.assert_close(log_sum_exp.double(), expected_lse, rtol=1e-6, atol=1e-5)
    assert (output.dtype, log_sum_exp.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("deviation", [30.0, 1e-3])
@pytest.mark.parametrize("sharp", ["past", "diagonal"])
def test_one_part_may_hold_all_the_mass(deviation: float, sharp: str) -> None:
    query, key, value = (drawn(1, 2, n, 16, seed=n) for n in (40, 100, 101))
    value = value[:, :, :100]
    part = slice(0, 60) if sharp == "past" else slice(60, 100)
    key[:, :, part] *= deviation
    output, log_sum_exp = flash_attention_after_past(query, key, value, scale=1.0)
    expected, expected_lse = dense(query, key, value, 1.0, causal=True)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=2e-4 if deviation > 1 else 5e-6)
    torch.testing.assert_close(log_sum_exp.double(), expected_lse, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_come_back_as_they_were_within_a_rounding_of_the_whole_operators_error(dtype: torch.dtype) -> None:
    query, key, value = (drawn(1, heads, n, 64, seed=n, dtype=dtype) for heads, n in ((8, 128), (2, 640), (2, 641)))
    value = value[:, :, :640]
    output, log_sum_exp = flash_attention_after_past(query, key, value, scale=0.125)
    expected, expected_lse = dense(query, key, value, 0.125, causal=True)
    mask = torch.ones(128, 640, dtype=torch.bool).tril(512)
    whole = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.125, enable_gqa=True)
    error, allowed = ((each.double() - expected).abs().max() for each in (output, whole))
    assert output.dtype == dtype
    assert error <= allowed + torch.finfo(dtype).eps * expected.abs().max()
    torch.testing.assert_close(log_sum_exp.double(), expected_lse, rtol=1e-6, atol=1e-5)


def test_bidirectional_attention_sees_all_keys() -> None:
    query, key, value = (drawn(2, heads, n, 16, seed=n) for heads, n in ((4, 9), (2, 31), (2, 32)))
    output, log_sum_exp = flash_attention(query, key, value[:, :, :31], scale=0.25, causal=False)
    expected, expected_lse = dense(query, key, value[:, :, :31], 0.25, causal=False)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(log_sum_exp.double(), expected_lse, rtol=0, atol=2e-6)


def test_what_would_be_silently_wrong_is_refused() -> None:
    query, key = drawn(1, 2, 4, 8, seed=0), drawn(1, 2, 9, 8, seed=1)
    with pytest.raises(ValueError, match="4 queries to 9 keys is not square"):
        flash_attention(query, key, key, scale=1.0, causal=True)
    with pytest.raises(ValueError, match="9 queries cannot stand at the last of 4 keys"):
        flash_attention_after_past(key, query, query, scale=1.0)
    for other in (key[:, :0], key[:, :, :0], key.half(), key.to("meta"), drawn(1, 3, 9, 8, seed=2)):
        assert not can_flash(query, other, other)
    with pytest.raises(ValueError, match="no fused operator"):
        flash_attention(query, key.half(), key.half(), scale=1.0, causal=False)
    meta = query.to("meta")
    assert not can_flash(meta, meta, meta)


def flash_of_a_gpu(query: Tensor, key: Tensor, value: Tensor, *options: Any, scale: float) -> tuple[Any, ...]:
    """As the CUDA operator behaves: one width, a multiple of 8, and seven more results."""
    dropout, causal, debug = options
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert (query.shape[-1] % 8, dropout, debug) == (0, 0.0, False)
    return *ON_CPU(query, key, value, dropout, causal, scale=scale), *[None] * 7


def efficient_of_a_gpu(query: Tensor, key: Tensor, value: Tensor, *options: Any, scale: float) -> tuple[Any, ...]:
    """As the CUDA operator behaves: as many key heads as heads, rows of the log-sum-exp filled up to 32."""
    bias, wants_log_sum_exp, dropout, causal = options
    assert query.shape[1] == key.shape[1] == value.shape[1]
    assert (bias, wants_log_sum_exp, dropout) == (None, True, 0.0)
    output, log_sum_exp = ON_CPU(query, key, value, dropout, causal, scale=scale)
    return output, torch.nn.functional.pad(log_sum_exp, (0, -query.shape[2] % 32), value=torch.nan), None, None


ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@pytest.mark.parametrize("kind", ["flash", "efficient"])
@pytest.mark.parametrize("num_past", [0, 40])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(("width", "value_width"), [(64, 64), (12, 12), (24, 16)])
def test_the_operators_of_a_gpu_are_given_what_they_want(
    monkeypatch: pytest.MonkeyPatch, kind: str, num_past: int, heads: int, kv_heads: int, width: int, value_width: int
) -> None:
    aten = torch.ops.aten
    monkeypatch.setattr(module, "_kind", lambda query: kind)
    monkeypatch.setattr(aten, "_scaled_dot_product_flash_attention", flash_of_a_gpu)
    monkeypatch.setattr(aten, "_scaled_dot_product_efficient_attention", efficient_of_a_gpu)
    query, key = drawn(1, heads, 33, width, seed=0), drawn(1, kv_heads, 33 + num_past, width, seed=1)
    value = drawn(1, kv_heads, 33 + num_past, value_width, seed=2)
    output, log_sum_exp = flash_attention_after_past(query, key, value, scale=0.2)
    expected, expected_lse = dense(query, key, value, 0.2, causal=True)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_sum_exp.double(), expected_lse, rtol=1e-6, atol=1e-5)

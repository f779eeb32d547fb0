"""What differs on a CUDA device: its operators' log-sum-exps, keys on the host, and memory that runs out in earnest."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from probe.hooks.models.huggingface import load
from probe.hooks.sequence.host_cache import host_layer
from probe.kernels.call import Call

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

KINDS = ["llama", "llama-gqa", "gpt2", "gpt-neox", "qwen3-sliding-full", "deepseek-v3-value-width"]


def expected_log_sum_exp(call: Call) -> Tensor:
    key = call.key.double().repeat_interleave(call.num_heads // call.num_kv_heads, dim=0)
    logits = call.query.double() @ key.mT * call.scale
    query = torch.arange(call.num_queries, device=key.device)[:, None] + call.query_start
    distance = query - torch.arange(call.num_keys, device=key.device) - call.key_start
    hidden = (distance < 0) if call.window is None else (distance < 0) | (distance >= call.window)
    return logits.masked_fill(hidden, -torch.inf).logsumexp(dim=-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_chunks_come_with_a_right_log_sum_exp_and_the_whole_prompts_logits(
    make: Any, tokens: Any, attention: Any, caplog: Any, kind: str, dtype: torch.dtype
) -> None:
    model, prompt = load(make(kind, "sdpa").to("cuda", dtype)), tokens(300)
    with torch.no_grad():
        expected = model.hf(input_ids=prompt[None].cuda()).logits[0].float()
    found: list[Tensor] = []
    with model.calls(attention):
        model.prefill(prompt.tolist(), chunk_tokens=90, on_logits=lambda start, rows: found.append(rows.float()))
    rounding = 8 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=max(rounding, 1e-4))
    for _, call in attention.calls:
        if call.log_sum_exp is not None:
            torch.testing.assert_close(call.log_sum_exp.double(), expected_log_sum_exp(call), rtol=1e-5, atol=1e-4)
        # After the first chunk the operator is of our choosing, and always says it.
        assert call.log_sum_exp is not None or call.query_start == 0 or call.window is not None
    assert "is off by" not in caplog.text


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen3-sliding-full"])
def test_keys_on_the_host_give_the_same_bits(make: Any, tokens: Any, kind: str) -> None:
    model, prompt = load(make(kind, "sdpa").to("cuda", torch.bfloat16)), tokens(300).tolist()
    found: dict[str, list[Tensor]] = {"device": [], "offload": []}
    for cache, logits in found.items():
        state = model.prefill(
            prompt,
            chunk_tokens=90,
            on_logits=lambda start, rows, logits=logits: logits.append(rows),
            cache=cache,  # type: ignore[arg-type]
        )
        before = model.mark(state)
        model.step(state, [5, 6, 7])
        model.rollback(state, before)
        logits.append(model.step(state, [9]))
    for one, other in zip(found["device"], found["offload"], strict=True):
        assert torch.equal(one, other)
    held = [layer for layer in state.cache.layers if isinstance(layer, host_layer)]
    assert held
    assert all(layer.keys.device.type == "cpu" and layer.keys.is_pinned() for layer in held)


def test_a_device_that_is_full_halves_the_chunk(make: Any, tokens: Any, caplog: Any) -> None:
    model = load(make("llama-gqa", "sdpa", max_position_embeddings=1 << 16, intermediate_size=1 << 13).cuda())
    prompt = tokens(1 << 14).tolist()
    expected = model.step(model.prefill(prompt, chunk_tokens=256), [5])
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    # A chunk of the whole prompt makes 0.5 GiB of each of a few tensors of the MLP.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (1 << 30)) / total)
    try:
        with caplog.at_level(logging.WARNING, "probe"):
            found = model.step(model.prefill(prompt, chunk_tokens=1 << 14), [5])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "going on in chunks of 8192" in caplog.text
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))

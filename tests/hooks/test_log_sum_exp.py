"""The log-sum-exp that the model's own attention hands over is that of the call, or there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from probe.hooks.attention import chunk as chunk_attention
from probe.hooks.attention.fused import fused_attention, fused_operators, log_sum_exp_of
from probe.hooks.models.huggingface import load
from probe.kernels.call import Call

FUSED = ["llama", "llama-gqa", "llama-mqa", "qwen3-sliding-full", "mistral-window", "gemma3", "gpt2", "gpt-neox",
         "phi3", "olmo2"]  # fmt: skip
ATTEND = torch.nn.functional.scaled_dot_product_attention


def expected(call: Call) -> Tensor:
    """From the words of `Call`, dense and in float64."""
    key = call.key.double().repeat_interleave(call.num_heads // call.num_kv_heads, dim=0)
    logits = torch.einsum("hqc,hkc->hqk", call.query.double(), key) * call.scale
    query = torch.arange(call.num_queries)[:, None] + call.query_start
    distance = query - torch.arange(call.num_keys)[None] - call.key_start
    hidden = (distance < 0) & call.causal
    if call.window is not None:
        hidden |= distance >= call.window
    return logits.masked_fill(hidden, -torch.inf).logsumexp(dim=-1)


def check(attention: Any) -> int:
    """Hold every log-sum-exp against its call; return how many calls have one."""
    given = [call for _, call in attention.calls if call.log_sum_exp is not None]
    for call in given:
        assert call.log_sum_exp.dtype == torch.float32
        assert call.log_sum_exp.shape == (call.num_heads, call.num_queries)
        torch.testing.assert_close(call.log_sum_exp.double(), expected(call), rtol=1e-6, atol=1e-5)
    return len(given)


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("num_tokens", [1, 2, 15, 129])
def test_a_whole_prompt_comes_with_it(make: Any, tokens: Any, attention: Any, kind: str, num_tokens: int) -> None:
    model = load(make(kind, "sdpa"))
    with torch.no_grad(), model.calls(attention):
        model.hf(input_ids=tokens(1, num_tokens))
    assert check(attention) == len(attention.calls) > 0


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("chunk_tokens", [1, 7, 64])
def test_chunks_and_decoded_tokens_come_with_it(
    make: Any, tokens: Any, attention: Any, kind: str, chunk_tokens: int
) -> None:
    model, prompt = load(make(kind, "sdpa")), tokens(33).tolist()
    with model.calls(attention):
        state = model.prefill(prompt[:29], chunk_tokens=chunk_tokens)
        model.step(state, prompt[29:30])
        model.step(state, prompt[30:])
    assert check(attention) == len(attention.calls) > 0


@pytest.mark.parametrize("kind", ["llama-gqa", "mistral-window"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_has_none_and_full_samples_have_it(
    make: Any, tokens: Any, attention: Any, kind: str, side: str
) -> None:
    model, mask = load(make(kind, "sdpa")), torch.ones(2, 15, dtype=torch.long)
    mask[1, slice(0, 4) if side == "left" else slice(11, 15)] = 0
    with torch.no_grad(), model.calls(attention):
        model.hf(input_ids=tokens(2, 15), attention_mask=mask)
    check(attention)
    assert all(call.log_sum_exp is None for sample, call in attention.calls if sample == 1)
    assert all(call.log_sum_exp is not None for sample, call in attention.calls if sample == 0)


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [
        ("llama-gqa", "eager"),
        ("gemma2-softcap", "eager"),
        ("gpt-oss-sinks", "eager"),
        ("deepseek-v3-value-width", None),
    ],
)
def test_attention_without_a_fused_operator_has_none(
    make: Any, tokens: Any, attention: Any, kind: str, implementation: str | None
) -> None:
    model = load(make(kind, implementation))
    with torch.no_grad(), model.calls(attention):
        model.hf(input_ids=tokens(1, 15))
    assert attention.calls
    assert all(call.log_sum_exp is None for _, call in attention.calls)


def test_double_precision_comes_with_it_in_float32(make: Any, tokens: Any, attention: Any) -> None:
    model = load(make("llama-gqa", "sdpa").double())
    with model.calls(attention):
        model.prefill(tokens(80).tolist(), chunk_tokens=30)
    assert check(attention) == len(attention.calls) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu_has_none(make: Any, tokens: Any, attention: Any, caplog: Any, dtype: Any) -> None:
    model = load(make("llama-gqa", "sdpa").to(dtype))
    with model.calls(attention):
        model.prefill(tokens(80).tolist(), chunk_tokens=30)
    assert len(attention.calls) == 6
    assert all(call.log_sum_exp is None for _, call in attention.calls)
    assert not caplog.records


def test_a_causal_mask_aligned_at_the_first_key_is_not_taken() -> None:
    query, key = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 9, 8)
    with fused_operators() as operators:
        ATTEND(query, key, key, is_causal=True)
    assert len(operators.seen) == 1
    assert operators.only is None
    with fused_operators() as operators:
        ATTEND(query, key, key)
        ATTEND(query, key, key)
    assert len(operators.seen) == 2
    assert operators.only is None


def test_only_what_is_provably_the_calls_own_is_taken() -> None:
    query, key = torch.randn(2, 4, 8), torch.randn(2, 9, 8)
    said = {kind: fused_attention(torch.randn(1, 2, 4), 9, kind) for kind in ("all", "causal", "masked")}
    at_the_end = {"layer": 0, "query": query, "key": key, "value": key, "scale": 1.0, "query_start": 5}

    def taken(visible: Any, **changes: Any) -> bool:
        return log_sum_exp_of(Call(**{**at_the_end, **changes}), 0, said[visible]) is not None

    assert taken("causal")
    assert taken("causal", window=9)
    assert taken("masked", window=3)
    assert taken("all", causal=False)
    assert not taken("all")
    assert not taken("causal", causal=False)
    assert not taken("causal", window=8)
    assert not taken("causal", query_start=4)
    assert not taken("causal", query=query[:, :3])
    assert not taken("causal", key=key[:, :8], value=key[:, :8])
    assert not taken("causal", softcap=2.0)
    for each in ({"sink_logit": torch.ones(2)}, {"alibi_slope": torch.ones(2)}, {"document": torch.ones(9).long()}):
        assert not taken("masked", **each)
    assert not taken("masked", key_visible=torch.ones(9, dtype=torch.bool))


@pytest.mark.parametrize("error", [0.01, torch.nan, torch.inf])
def test_one_that_is_off_is_dropped_and_said_to_be(
    make: Any, tokens: Any, attention: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, error: float
) -> None:
    class off_by_a_little(fused_operators):
        @property
        def only(self) -> fused_attention | None:
            said = super().only
            assert said is not None
            return fused_attention(said.log_sum_exp + error, said.num_keys, said.visible)

    model = load(make("llama-gqa", "sdpa"))
    model.attention_layers  # noqa: B018
    monkeypatch.setattr(chunk_attention, "fused_operators", off_by_a_little)
    with torch.no_grad(), model.calls(attention):
        for _ in range(3):
            model.hf(input_ids=tokens(1, 15))
    assert attention.calls
    assert all(call.log_sum_exp is None for _, call in attention.calls)
    assert len(caplog.records) == 2
    assert "LlamaForCausalLM, layer 0: the log-sum-exp that its attention operator handed over is off by" in caplog.text


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("projection", ["q_proj", "k_proj"])
@pytest.mark.parametrize("chunk_tokens", [5, 64])
def test_where_queries_or_keys_are_not_finite_there_is_none(
    make: Any, tokens: Any, attention: Any, caplog: Any, bad: float, projection: str, chunk_tokens: int
) -> None:
    hf = make("llama", "sdpa")
    with torch.no_grad():
        getattr(hf.model.layers[0].self_attn, projection).weight[8] = bad
    model = load(hf)
    with model.calls(attention):
        model.prefill(tokens(15).tolist(), chunk_tokens=chunk_tokens)
    assert all(call.log_sum_exp is None for _, call in attention.calls if call.layer == 0)
    check(attention)
    assert not caplog.records

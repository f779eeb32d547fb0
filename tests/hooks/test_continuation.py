"""A model whose cache loses its state between chunks is refused, not believed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from probe.errors import NotReproducible
from probe.hooks import continuation
from probe.hooks.huggingface import load

# transformers 5.23: what goes on from its cache for several new tokens, or for one.
HYBRIDS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, True, True),
    "falcon_h1": (
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "head_dim": 8},
        True,
        True,
    ),
    "jamba": (
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        False,
        True,
    ),
    "mamba": ({"state_size": 4}, False, False),
}


def whole(model: Any, prompt: Tensor) -> Tensor:
    with torch.no_grad():
        return model.hf(input_ids=prompt[None], use_cache=False).logits[0]


@pytest.mark.parametrize("kind", HYBRIDS)
@pytest.mark.parametrize("num_new", [1, 4])
def test_what_follows_a_chunk_is_right_or_refused(make: Any, tokens: Any, kind: str, num_new: int) -> None:
    fields, several, single = HYBRIDS[kind]
    model, prompt = load(make(kind, **fields)), tokens(30)
    state = model.prefill(prompt[:-num_new].tolist())
    expected = whole(model, prompt)[-num_new:]
    if several if num_new > 1 else single:
        found = model.step(state, prompt[-num_new:].tolist())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(NotReproducible, match=r"put through on its cache give other logits than in one forward"):
            model.step(state, prompt[-num_new:].tolist())


def test_a_prompt_in_one_chunk_needs_no_cache_to_go_on_from(make: Any, tokens: Any) -> None:
    model, prompt = load(make("mamba", **HYBRIDS["mamba"][0])), tokens(30)
    found: list[Tensor] = []
    model.prefill(prompt.tolist(), on_logits=lambda start, rows: found.append(rows))
    torch.testing.assert_close(torch.cat(found), whole(model, prompt))
    with pytest.raises(NotReproducible, match="MambaForCausalLM: several tokens put through on its cache"):
        model.prefill(prompt.tolist(), chunk_tokens=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2", "gemma3", "gpt-oss-sinks", "mistral-window"])
def test_attention_goes_on_in_every_dtype(make: Any, tokens: Any, kind: str, dtype: torch.dtype) -> None:
    model = load(make(kind).to(dtype))
    model.step(model.prefill(tokens(40).tolist(), chunk_tokens=16), [5])


def test_it_is_tried_once_and_seen_by_nobody(
    make: Any, tokens: Any, attention: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, own, tried = load(make("llama-gqa")), continuation._difference, []
    monkeypatch.setattr(continuation, "_difference", lambda *given: tried.append(given[1]) or own(*given))
    for _ in range(2):
        with model.calls(attention):
            state = model.prefill(tokens(20).tolist(), chunk_tokens=10)
            model.step(state, [5])
    assert tried == [3, 1]
    assert [call.num_queries for _, call in attention.calls] == [10, 10, 10, 10, 1, 1] * 2


def test_weights_that_give_nan_are_not_refused_for_it(make: Any, tokens: Any) -> None:
    hf = make("llama-gqa")
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight[3] = torch.nan
    assert load(hf).prefill(tokens(20).tolist(), chunk_tokens=8).num_tokens == 20

"""What a model puts out after its cache is what one forward gives; it is tried once, and seen by nobody."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probe.errors import NotReproducible
from probe.hooks.models.huggingface import load
from probe.hooks.sequence import continuation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2", "gemma3", "gpt-oss-sinks", "mistral-window"])
def test_attention_goes_on_in_every_dtype(make: Any, tokens: Any, kind: str, dtype: torch.dtype) -> None:
    model = load(make(kind).to(dtype))
    model.step(model.prefill(tokens(40).tolist(), chunk_tokens=16), [5])


def test_it_is_tried_once_and_seen_by_nobody(
    make: Any, tokens: Any, attention: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, own, tried = load(make("llama-gqa")), continuation._difference, list[list[int]]()
    monkeypatch.setattr(continuation, "_difference", lambda *given: tried.append(given[1]) or own(*given))
    for _ in range(2):
        with model.calls(attention):
            state = model.prefill(tokens(20).tolist(), chunk_tokens=10)
            model.step(state, [5])
    assert tried == [[3, 3], [5, 1]]
    assert [call.num_queries for _, call in attention.calls] == [10, 10, 10, 10, 1, 1] * 2


def test_weights_that_give_nan_are_not_refused_for_it(make: Any, tokens: Any) -> None:
    hf = make("llama-gqa")
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight[3] = torch.nan
    assert load(hf).prefill(tokens(20).tolist(), chunk_tokens=8).num_tokens == 20


def test_rounding_that_sharp_heads_enlarge_is_no_lost_state(make: Any, tokens: Any) -> None:
    sizes = {"hidden_size": 960, "num_attention_heads": 12, "num_key_value_heads": 2, "num_hidden_layers": 3}
    model = load(make("llama", **sizes))
    state = model.prefill(tokens(1, 9)[0].tolist(), chunk_tokens=1)
    assert state.num_tokens == 9


def test_a_cache_that_fails_holds_a_prompt_that_comes_at_once_and_no_more(make: Any, tokens: Any) -> None:
    # The window of one token: transformers keeps all keys and makes a mask for one.
    model = load(make("mistral-window", sliding_window=1))
    state = model.prefill(tokens(1, 9)[0].tolist(), chunk_tokens=3)
    with pytest.raises(NotReproducible, match="MistralForCausalLM: a token put through on its cache"):
        model.step(state, [5])

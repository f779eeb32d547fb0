"""A model whose attention cannot be reproduced is refused by name, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from probe.errors import NotReproducible, UsageError
from probe.hooks.models.huggingface import load

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("kind", "fields", "name", "reason"),
    [
        ("gpt2", {"reorder_and_upcast_attn": True}, "GPT2LMHeadModel", "never called"),
        ("diffllama", {"num_key_value_heads": 2, "intermediate_size": 48}, "DiffLlamaForCausalLM", "more than once"),
    ],
)
def test_a_model_that_the_interface_does_not_reach_is_refused(
    kind: str, fields: dict[str, Any], name: str, reason: str
) -> None:
    config = AutoConfig.for_model(kind, **{**SIZES, **fields})
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(NotReproducible, match=f"{name}.*{reason}"), load(hf).calls(None):
        pass
    assert hf.config._attn_implementation == "eager"


def alibi(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    distance = torch.arange(key.shape[2])[None, :] - torch.arange(query.shape[2])[:, None]
    return OWN(module, query, key, value, mask + 0.1 * distance, **options)


def unscaled(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    return OWN(module, query, key, value, mask, **{**options, "scaling": 1.0})


def bidirectional(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    return OWN(module, query, key, value, None, **options)


def tiled(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    # The right shape and the wrong heads: groups tiled where they should be interleaved.
    order = torch.arange(4).view(2, 2).T.flatten()
    output, weights = OWN(module, query[:, order], key, value, mask, **options)
    return output[:, :, order], weights


def capped(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    logits = torch.tanh(query @ key.transpose(2, 3) * options["scaling"])
    return ((logits + mask).softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None


OWN = modeling_llama.eager_attention_forward


@pytest.mark.parametrize("planted", [alibi, unscaled, bidirectional, tiled, capped])
@pytest.mark.parametrize("length", [5, 60])
def test_attention_that_is_not_as_it_says_is_caught_by_recomputing_rows(
    make: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch, planted: Any, length: int
) -> None:
    model = load(make("llama-gqa", "eager"))
    model.attention_layers  # noqa: B018
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", planted)
    with (
        torch.no_grad(),
        model.calls(lambda sample, call: None),
        pytest.raises(NotReproducible, match=r"LlamaForCausalLM, layer 0: the attention output .* largest difference"),
    ):
        model.hf(input_ids=tokens(1, length))


def test_a_softcap_that_attention_leaves_out_is_refused_with_advice(
    make: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.gemma2 import modeling_gemma2

    model, own = load(make("gemma2-softcap")), modeling_gemma2.eager_attention_forward
    model.attention_layers  # noqa: B018
    uncapped = lambda *tensors, **options: own(*tensors, **{**options, "softcap": None})  # noqa: E731
    monkeypatch.setattr(modeling_gemma2, "eager_attention_forward", uncapped)
    reason = r"Gemma2ForCausalLM, layer 0: .* load it with eager attention"
    with torch.no_grad(), model.calls(lambda sample, call: None), pytest.raises(NotReproducible, match=reason):
        model.hf(input_ids=tokens(1, 60))


def with_bias(mask: Tensor) -> Tensor:
    return torch.where(mask == 0, 0.01, mask)


def with_a_hidden_key(mask: Tensor) -> Tensor:
    changed = mask.clone()
    changed[:, :, 20, 3] = torch.finfo(mask.dtype).min
    return changed


def with_a_visible_future(mask: Tensor) -> Tensor:
    changed = mask.clone()
    changed[:, :, 20, 23] = 0
    return changed


@pytest.mark.parametrize("planted", [with_bias, with_a_hidden_key, with_a_visible_future])
def test_a_mask_that_differs_in_one_place_is_refused_though_no_checked_row_shows_it(
    make: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch, planted: Any
) -> None:
    model = load(make("llama-gqa", "eager"))
    own = modeling_llama.create_causal_mask
    model.attention_layers  # noqa: B018
    monkeypatch.setattr(modeling_llama, "create_causal_mask", lambda **options: planted(own(**options)))
    with (
        torch.no_grad(),
        model.calls(lambda sample, call: None),
        pytest.raises(NotReproducible, match="LlamaForCausalLM, layer 0: its mask at query"),
    ):
        model.hf(input_ids=tokens(1, 60))


def holes() -> Tensor:
    mask = torch.ones(1, 9, dtype=torch.long)
    mask[0, 4] = 0
    return mask


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (holes(), "mask of sample 0 has holes: 8 tokens are kept between positions 0 and 8"),
        (torch.zeros(1, 9, dtype=torch.long), "sample 0 of the batch is padding alone"),
        (torch.zeros(1, 1, 9, 9), r"a custom attention mask \(\(1, 1, 9, 9\)\)"),
    ],
)
def test_a_mask_that_is_not_padding_is_refused(make: Any, tokens: Any, mask: Tensor, reason: str) -> None:
    model = load(make("llama-gqa"))
    with (
        torch.no_grad(),
        model.calls(lambda sample, call: None),
        pytest.raises(NotReproducible, match=f"LlamaForCausalLM: .*{reason}"),
    ):
        model.hf(input_ids=tokens(1, 9), attention_mask=mask)


def test_a_cache_that_drops_keys_which_attention_would_see_is_refused(make: Any, tokens: Any) -> None:
    # Moshi's configuration has a window, by which the cache goes and its attention does not.
    fields = {"sliding_window": 16, "ffn_dim": 48, "num_codebooks": 2, "audio_vocab_size": 61}
    model = load(make("moshi", **fields))
    with model.calls(lambda sample, call: None):
        state = model.prefill(tokens(16).tolist())
        with pytest.raises(NotReproducible, match="MoshiForCausalLM, layer 0: its cache dropped"):
            model.step(state, [5])


def test_what_is_no_transformers_model_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"not torch.nn.modules.linear.Linear"):
        load(torch.nn.Linear(2, 2))  # type: ignore[arg-type]

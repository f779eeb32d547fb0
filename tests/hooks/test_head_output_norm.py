"""A head's norm is that of what the output projection makes of it, read where nothing of ours is involved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probe.errors import NotReproducible, UsageError
from probe.hooks.ablate_heads import ablate_heads
from probe.hooks.attention.head_output_norm import head_output_norm
from probe.hooks.models.huggingface import load

PROMPTS = [list(range(3, 20)), list(range(20, 31))]


def linear(hf: Any, layer: int) -> tuple[Any, torch.Tensor]:
    """The output projection and its weight, residual × heads."""
    if hasattr(hf, "transformer"):
        module = hf.transformer.h[layer].attn.c_proj
        return module, module.weight.T
    if hasattr(hf, "gpt_neox"):
        module = hf.gpt_neox.layers[layer].attention.dense
        return module, module.weight
    module = hf.model.layers[layer].self_attn.o_proj
    return module, module.weight


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2", "gpt-neox", "gemma2-softcap", "deepseek-v3-value-width"])
@pytest.mark.parametrize("projected", [True, False])
def test_norms_equal_those_of_each_heads_part_of_the_projection(make: Any, kind: str, projected: bool) -> None:
    hf = make(kind)
    expected = np.zeros((2, 4))
    for layer in range(2):
        inputs: list[torch.Tensor] = []
        module, weight = linear(hf, layer)
        hook = module.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.append(args[0][0]))
        with torch.no_grad():
            for prompt in PROMPTS:
                hf(input_ids=torch.tensor([prompt]))
        hook.remove()
        whole = torch.cat(inputs).double()
        width = whole.shape[1] // 4
        for head in range(4):
            part = whole[:, head * width : (head + 1) * width]
            if projected:
                part = part @ weight[:, head * width : (head + 1) * width].detach().double().T
            expected[layer, head] = float(part.norm(dim=1).mean())
    found = head_output_norm(load(hf), PROMPTS, projected=projected)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_ablation_around_it_does_not_change_the_norms(make: Any) -> None:
    hf = make("llama-gqa")
    expected = head_output_norm(hf, PROMPTS)
    with ablate_heads([(0, 1)])(hf):
        np.testing.assert_array_equal(head_output_norm(hf, PROMPTS), expected)


def test_layers_without_attention_have_no_norm() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "lfm2", vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    norms = head_output_norm(AutoModelForCausalLM.from_config(config).eval(), PROMPTS)
    assert np.isnan(norms[0]).all()
    assert (norms[1] > 0).all()


def test_a_projection_that_is_not_found_is_refused_by_name() -> None:
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    hf = BertModel(BertConfig(**sizes, num_attention_heads=4)).eval()
    with pytest.raises(NotReproducible, match="BertModel, layer 0: the output projection of BertSelfAttention"):
        head_output_norm(hf, PROMPTS)
    assert head_output_norm(hf, PROMPTS, projected=False).shape == (2, 4)


def test_no_prompts_are_a_usage_error(make: Any) -> None:
    with pytest.raises(UsageError, match="at least one reference prompt"):
        head_output_norm(make("llama-gqa"), [[]])

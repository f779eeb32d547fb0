"""A module that asks for the name of its attention goes on as it was loaded, though the name is exchanged for ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probe.errors import NotReproducible
from probe.hooks.attention.interface import exchanged_name
from probe.hooks.models.huggingface import load

# DeepSeek V3.2 hides the keys that its indexer does not choose, by the mask where attention is eager or SDPA.
INDEXED = {
    "num_key_value_heads": 4, "moe_intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "head_dim": 4,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 10, "index_head_dim": 8, "index_n_heads": 2,
    "mlp_layer_types": ["dense", "sparse"], "layer_types": None,
}  # fmt: skip


def test_the_name_is_looked_up_as_ours_and_equal_to_either() -> None:
    name = exchanged_name("sdpa")
    assert name == "sdpa"
    assert name == "probe_over_sdpa"
    assert name in ("eager", "sdpa")
    assert name != "eager"
    assert (name != "sdpa") is False
    assert {"sdpa": 1, "probe_over_sdpa": 2}[name] == 2


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_over_chosen_keys_is_exact_as_long_as_all_are_chosen(
    make: Any, tokens: Any, attention: Any, implementation: str
) -> None:
    model, prompt = load(make("deepseek_v32", implementation, **INDEXED, index_topk=12)), tokens(1, 13)
    with torch.no_grad():
        before = model.hf(input_ids=prompt[:, :12]).logits
        with model.calls(attention):
            during = model.hf(input_ids=prompt[:, :12]).logits
            with pytest.raises(NotReproducible, match="DeepseekV32ForCausalLM, layer 0: its mask at query 12"):
                model.hf(input_ids=prompt)
    assert torch.equal(before, during)
    eager = make("deepseek_v32", "eager", **INDEXED, index_topk=12)
    with torch.no_grad():
        expected = eager(input_ids=prompt[:, :12], output_attentions=True).attentions
    for (layer, _), found in attention.matrices(12).items():
        torch.testing.assert_close(found, expected[layer][0].double(), rtol=0, atol=1e-5)

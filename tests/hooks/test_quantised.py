"""Quantised models are measured like any other, say how they are quantised, and have a hash of what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.errors import NotReproducible
from probe.hooks.attention.head_output_norm import head_output_norm
from probe.hooks.loading.quantisation import quantisation
from probe.hooks.loading.weights import weights_sha256
from probe.hooks.models.huggingface import load

TOKENS = list(range(3, 30))


def eager_entropy(hf: Any) -> np.ndarray:
    """Entropy from the attention weights that the model itself gives."""
    hf.config._attn_implementation = "eager"
    with torch.no_grad():
        weights = torch.stack(hf(torch.tensor([TOKENS]), output_attentions=True).attentions)[:, 0].double()
    return torch.special.entr(weights).sum(-1).numpy()


def test_a_model_with_plain_weights_says_nothing(make: Any) -> None:
    assert load(make("llama-gqa")).provenance()["quantisation"] is None
    assert load(make("llama-gqa").to(torch.bfloat16)).provenance()["quantisation"] is None


def test_eight_bit_weights_by_torchao(make: Any) -> None:
    torchao: Any = pytest.importorskip("torchao.quantization")
    hf = make("llama-gqa")
    torchao.quantize_(hf, torchao.Int8WeightOnlyConfig())
    trace = probe.trace(hf, TOKENS, statistics=["entropy", "key_norm"], max_new_tokens=2, chunk_tokens=8)
    said = trace.provenance["quantisation"]
    assert sum(said["parameters"].values()) >= 14
    known = weights_sha256(hf)
    assert trace.provenance["weights_sha256"] == known != weights_sha256(make("llama-gqa"))
    norms = head_output_norm(hf, [TOKENS])
    np.testing.assert_allclose(norms, head_output_norm(make("llama-gqa"), [TOKENS]), rtol=0.1)
    np.testing.assert_allclose(
        np.asarray(trace["entropy"])[..., : len(TOKENS)], eager_entropy(hf)[..., : len(TOKENS)], atol=2e-4
    )
    other = make("llama-gqa")
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    torchao.quantize_(other, torchao.Int8WeightOnlyConfig())
    assert weights_sha256(other) != known


def test_four_bit_weights_by_bitsandbytes(make: Any) -> None:
    bitsandbytes: Any = pytest.importorskip("bitsandbytes")
    hf = make("llama-gqa", hidden_size=64, intermediate_size=64)
    for layer in hf.model.layers:
        plain = layer.self_attn.o_proj
        packed = bitsandbytes.nn.Linear4bit(
            plain.in_features, plain.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
        )
        packed.load_state_dict(plain.state_dict())
        layer.self_attn.o_proj = packed.to("cpu")
    trace = probe.trace(hf, TOKENS, statistics=["entropy"])
    assert trace.provenance["quantisation"]["parameters"] == {"Params4bit": 2}
    np.testing.assert_allclose(
        head_output_norm(hf, [TOKENS])[0],
        head_output_norm(make("llama-gqa", hidden_size=64, intermediate_size=64), [TOKENS])[0],
        rtol=0.2,
    )


@pytest.mark.filterwarnings("ignore")
def test_weights_packed_by_torch_have_a_hash(make: Any) -> None:
    hf = torch.ao.quantization.quantize_dynamic(make("llama-gqa"), {torch.nn.Linear}, dtype=torch.qint8)
    assert weights_sha256(hf) == weights_sha256(hf)
    other = make("llama-gqa")
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0] *= -1
    other = torch.ao.quantization.quantize_dynamic(other, {torch.nn.Linear}, dtype=torch.qint8)
    assert weights_sha256(hf) != weights_sha256(other)
    said = quantisation(hf)
    assert said is not None
    assert any("Linear" in kind for kind in said["parameters"])
    with pytest.raises(NotReproducible, match="depends on which others come in the same chunk"):
        load(hf)


def test_eight_bit_activations_by_bitsandbytes(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Each token is rounded to eight bits by itself, which another number of tokens tips over now and then."""
    bitsandbytes: Any = pytest.importorskip("bitsandbytes")
    hf = make("llama-gqa", hidden_size=64, intermediate_size=64)
    for layer in hf.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            plain = getattr(layer.self_attn, name)
            packed = bitsandbytes.nn.Linear8bitLt(
                plain.in_features, plain.out_features, bias=False, has_fp16_weights=False
            )
            packed.weight = bitsandbytes.nn.Int8Params(
                plain.weight.data.clone(), requires_grad=False, has_fp16_weights=False
            ).to("cpu")
            setattr(layer.self_attn, name, packed)
    trace = probe.trace(hf, TOKENS, statistics=["entropy"], chunk_tokens=8, max_new_tokens=2)
    assert trace.provenance["quantisation"]["parameters"] == {"Int8Params": 8}
    assert trace.provenance["weights_sha256"] == weights_sha256(hf)

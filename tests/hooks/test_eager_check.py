"""The check of an unknown architecture: it passes where the capture is right, and says which layer is not."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

import probe
from probe.errors import NotReproducible
from probe.hooks.attention import switch as attention_switch
from probe.hooks.models import eager_check
from probe.hooks.models.eager_check import compared_with_eager
from probe.hooks.models.huggingface import load

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}


def made(kind: str = "llama", attention: str | None = None, seed: int = 0, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**SIZES, **fields})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.eval()


@pytest.fixture(autouse=True)
def forgets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path))
    return tmp_path / "eager-checks"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {}),
        ("gemma2", {"head_dim": 8, "sliding_window": 7, "attn_logit_softcapping": 2.0}),
        ("gpt_oss", {"head_dim": 8, "sliding_window": 7, "num_local_experts": 2, "num_experts_per_tok": 1}),
        ("granite_swa", {"sliding_window": 7}),
        ("bloom", {"n_layer": 2, "n_head": 4}),
        ("falcon", {}),
    ],
)
def test_what_is_captured_agrees_and_the_model_is_left_alone(kind: str, fields: dict[str, Any], dtype: Any) -> None:
    model = made(kind, **fields).to(dtype)
    named = model.config._attn_implementation
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        said = compared_with_eager(load(model))
        after = model(input_ids=tokens).logits
    assert said.startswith("16 tokens, 2 layers: probabilities differ by at most")
    assert model.config._attn_implementation == named
    assert torch.equal(before, after)


class _misunderstood(attention_switch.verified_calls):
    """Hands out calls that differ from the attention by a quarter of its scale, in the second layer."""

    def _verified(self, here: Any, *args: Any) -> Any:
        call = super()._verified(here, *args)
        return dataclasses.replace(call, scale=call.scale * 0.75) if here.layer == 1 else call


def test_a_disagreement_is_refused_with_the_layer_and_its_size(monkeypatch: pytest.MonkeyPatch, forgets: Path) -> None:
    monkeypatch.setattr(attention_switch, "verified_calls", _misunderstood)
    model = load(made())
    with pytest.raises(NotReproducible, match=r"layer 1: .* probabilities differ by 0\.\d+ where .* is allowed"):
        probe.trace(model, list(range(3, 30)), statistics=["entropy"])
    # What was refused is not remembered as fit.
    assert not list(forgets.glob("*.json"))
    trace = probe.trace(model, list(range(3, 30)), statistics=["entropy"], check=False)
    assert trace.provenance["compared_with_eager"] == "not compared: --no-eager-check"


def test_attention_that_is_another_when_eager_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class other(attention_switch.verified_calls):
        def _verified(self, here: Any, *args: Any) -> Any:
            call = super()._verified(here, *args)
            eager = here.module.config._attn_implementation.endswith("eager")
            return call if eager else dataclasses.replace(call, window=5)

    monkeypatch.setattr(attention_switch, "verified_calls", other)
    with pytest.raises(NotReproducible, match="layer 0: as it was loaded its attention is another"):
        compared_with_eager(load(made()))


def test_a_revision_is_compared_once(monkeypatch: pytest.MonkeyPatch, forgets: Path) -> None:
    runs: list[int] = []
    compare = eager_check._compare
    monkeypatch.setattr(eager_check, "_compare", lambda model: runs.append(1) or compare(model))
    model = made()
    said = [compared_with_eager(load(model)), compared_with_eager(load(model)), compared_with_eager(load(made()))]
    assert len(set(said)) == 1
    assert len(runs) == 1
    compared_with_eager(load(made(seed=1)))
    compared_with_eager(load(made(attention="eager")))
    assert len(runs) == 3
    assert len(list(forgets.glob("*.json"))) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0, "said": "yes"}', '{"format": 2, "said": 5}', "\x00"])
def test_a_damaged_record_is_ignored_and_said(text: str, forgets: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = compared_with_eager(load(made()))
    (record,) = forgets.glob("*.json")
    record.write_text(text, encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="probe"):
        assert compared_with_eager(load(made())) == first
    assert "is no record of a comparison" in caplog.text
    assert json.loads(record.read_text(encoding="utf-8"))["said"] == first


def test_a_folder_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("", encoding="utf-8")
    monkeypatch.setenv("PROBE_CACHE", str(taken))
    with caplog.at_level(logging.WARNING, logger="probe"):
        assert compared_with_eager(load(made())).startswith("16 tokens")
    assert "could not be remembered" in caplog.text


def test_what_hands_nothing_out_is_said() -> None:
    fields = {"state_size": 8, "time_step_rank": 4, "expand": 1}
    said = compared_with_eager(load(made("mamba", **fields)))
    assert said == "not compared: it has no attention; each call's output is recomputed"


def test_a_trace_without_attention_needs_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_model: Any) -> Tensor:
        raise AssertionError("compared")

    monkeypatch.setattr(eager_check, "_compare", never)
    trace = probe.trace(made(), list(range(3, 20)), statistics=["loss"])
    assert "compared_with_eager" not in trace.provenance


def test_a_model_whose_sdpa_attention_sees_what_its_eager_attention_does_not_is_refused() -> None:
    # Without token types its text layers call themselves bidirectional, and only eager attention has a causal mask.
    text = {**SIZES, "model_type": "gemma", "head_dim": 8}
    sight = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(
        "paligemma", text_config=text, vision_config={**sight, "model_type": "siglip_vision_model"}, projection_dim=32
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    with pytest.raises(NotReproducible, match=r"its eager attention is not what it has as loaded: .*layer 0"):
        probe.trace(model, list(range(3, 20)), statistics=["entropy"])


def test_within_an_intervention_nothing_is_compared_and_nothing_remembered() -> None:
    model = load(made())
    with probe.ablate_heads([(0, 1)])(model):
        trace = probe.trace(model, list(range(3, 20)), statistics=["entropy"])
    assert trace.provenance["compared_with_eager"].startswith("not compared: it is read within an intervention")
    trace = probe.trace(model, list(range(3, 20)), statistics=["entropy"])
    assert trace.provenance["compared_with_eager"].startswith("16 tokens, 2 layers")

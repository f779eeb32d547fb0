"""LoRA adapters: the trace is that of the adapted model, and says which adapters took part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import probe
from probe.errors import NotAvailable, NotReproducible
from probe.hooks.attention.head_output_norm import head_output_norm
from probe.hooks.models.huggingface import load

peft: Any = pytest.importorskip("peft")
# peft warns of itself, and of what transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = list(range(3, 30))


def adapted(hf: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj", "o_proj"], lora_dropout=0.5, init_lora_weights=False, **options
    )
    return peft.get_peft_model(hf, config)


def entropy(model: Any) -> np.ndarray:
    return np.asarray(probe.trace(model, TOKENS, statistics=["entropy"])["entropy"])


def eager_entropy(hf: Any) -> np.ndarray:
    """Entropy from the attention weights that the model itself gives."""
    hf.eval()
    hf.config._attn_implementation = "eager"
    with torch.no_grad():
        weights = torch.stack(hf(torch.tensor([TOKENS]), output_attentions=True).attentions)[:, 0].double()
    return torch.special.entr(weights).sum(-1).numpy()


def test_attention_is_the_adapted_models_own(make: Any) -> None:
    base = make("llama-gqa")
    before = {name: parameter.data_ptr() for name, parameter in base.named_parameters()}
    model = adapted(base)
    loaded = load(model)
    assert loaded.hf is base
    pointers = {parameter.data_ptr() for parameter in loaded.hf.parameters()}
    assert set(before.values()) <= pointers
    found = entropy(model)
    assert np.abs(found - entropy(make("llama-gqa"))).max() > 0.01
    np.testing.assert_allclose(found, eager_entropy(model), atol=2e-5)


def test_which_adapters_take_part_is_recorded(make: Any) -> None:
    model = adapted(make("llama-gqa"))
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    loaded = load(model)
    said = loaded.provenance()["adapters"]
    assert (said["active"], said["merged"], said["num_modules"]) == (["default"], [], 6)
    assert said["known"]["other"]["r"] == 3
    plain = load(make("llama-gqa"))
    assert plain.provenance()["adapters"] is None
    hashes = [plain.weights_sha256, loaded.weights_sha256]
    model.set_adapter("other")
    assert loaded.provenance()["adapters"]["active"] == ["other"]
    with model.disable_adapter():
        assert loaded.provenance()["adapters"]["active"] == []
        np.testing.assert_allclose(entropy(model), entropy(make("llama-gqa")), atol=2e-5)
    model.merge_adapter()
    assert loaded.provenance()["adapters"]["merged"] == ["other"]
    hashes.append(loaded.weights_sha256)
    assert len(set(hashes)) == 3


def test_a_merged_adapter_gives_the_same_numbers(make: Any) -> None:
    model = adapted(make("llama-gqa"))
    expected = entropy(model)
    model.merge_adapter()
    np.testing.assert_allclose(entropy(model), expected, atol=1e-4)
    np.testing.assert_allclose(entropy(model.merge_and_unload()), expected, atol=1e-4)


def test_what_a_head_adds_goes_through_the_adapted_projection(make: Any) -> None:
    model = adapted(make("llama-gqa"))
    found = head_output_norm(load(model), [TOKENS])
    np.testing.assert_allclose(found, head_output_norm(model.merge_and_unload(), [TOKENS]), rtol=1e-4)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_adapters_with_tokens_of_their_own_are_refused(make: Any, kind: str) -> None:
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(NotReproducible, match=r"'default' \(P\w+\) puts keys or tokens of its own before the prompt"):
        load(peft.get_peft_model(make("llama-gqa"), config))


@pytest.fixture
def folders(make: Any, tmp_path: Path) -> tuple[Path, Path]:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make("llama-gqa").save_pretrained(base)
    model = adapted(load(base, device="cpu").hf)
    model.save_pretrained(adapter)
    return base, adapter


def test_an_adapters_folder_loads_with_its_base(folders: tuple[Path, Path], make: Any) -> None:
    base, adapter = folders
    loaded = load(adapter, device="cpu")
    assert loaded.name == str(adapter)
    assert loaded.provenance()["adapters"]["known"]["default"]["base_model_name_or_path"] == str(base)
    assert loaded.weights_sha256 == load(adapted(make("llama-gqa"))).weights_sha256
    np.testing.assert_array_equal(entropy(loaded), entropy(adapted(make("llama-gqa"))))


@pytest.mark.parametrize("broken", ["base gone", "no base named", "tensor missing", "other shape", "not json"])
def test_an_adapter_that_does_not_fit_is_refused(folders: tuple[Path, Path], broken: str) -> None:
    _, adapter = folders
    path, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    config, held = json.loads(path.read_text()), load_file(weights)
    first = sorted(held)[0]
    reasons = {
        "base gone": r"is a peft adapter of .*nowhere",
        "no base named": "names no base_model_name_or_path",
        "tensor missing": "checkpoint is not whole",
        "other shape": "does not fit its base",
        "not json": "is no JSON",
    }
    if broken == "base gone":
        path.write_text(json.dumps({**config, "base_model_name_or_path": "/nowhere"}))
    elif broken == "no base named":
        path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    elif broken == "not json":
        path.write_text("{")
    else:
        changed = {name: tensor for name, tensor in held.items() if name != first}
        if broken == "other shape":
            changed[first] = torch.ones(1, 1)
        save_file(changed, weights)
    with pytest.raises(NotAvailable, match=reasons[broken]) as caught:
        load(adapter, device="cpu")
    assert "\n" not in str(caught.value)


def test_without_peft_an_adapter_says_what_to_install(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from probe.hooks.loading import adapter_folder

    monkeypatch.setattr(adapter_folder, "_has_peft", lambda: False)
    with pytest.raises(NotAvailable, match="install peft"):
        load(folders[1], device="cpu")

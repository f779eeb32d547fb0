"""Models that accelerate spread or offloaded, and models whose weights were never loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.errors import NotAvailable, UsageError
from probe.hooks.attention.head_output_norm import head_output_norm
from probe.hooks.loading.placement import chosen_map, input_device
from probe.hooks.models.huggingface import load

accelerate = pytest.importorskip("accelerate")

TOKENS = list(range(3, 30))
STATISTICS = ["entropy", "received_mass", "match_mass", "key_layer_similarity", "residual_norm", "loss"]
MIXED = {
    "model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
    "model.rotary_emb": "cpu", "lm_head": "disk",
}  # fmt: skip


def offloaded(hf: Any, how: str, folder: Path) -> Any:
    if how == "cpu":
        return accelerate.cpu_offload(hf, execution_device="cpu")
    if how == "disk":
        accelerate.disk_offload(hf, str(folder), execution_device="cpu")
        return hf
    return accelerate.dispatch_model(hf, MIXED, main_device="cpu", offload_dir=str(folder))


@pytest.mark.parametrize("how", ["cpu", "disk", "mixed"])
def test_an_offloaded_model_gives_the_numbers_of_a_loaded_one(make: Any, tmp_path: Path, how: str) -> None:
    expected = probe.trace(make("llama-gqa"), TOKENS, statistics=STATISTICS, chunk_tokens=8, max_new_tokens=2)
    hf = offloaded(make("llama-gqa"), how, tmp_path)
    assert any(parameter.is_meta for parameter in hf.parameters())
    found = probe.trace(hf, TOKENS, statistics=STATISTICS, chunk_tokens=8, max_new_tokens=2)
    for name in STATISTICS:
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]), err_msg=name)
    assert found.outcome == expected.outcome
    assert found.provenance["weights_sha256"] == expected.provenance["weights_sha256"]
    assert found.provenance["device"] == "cpu"
    assert (found.provenance["device_map"] == MIXED) == (how == "mixed")
    assert found.provenance["device_map"]
    assert expected.provenance["device_map"] is None
    np.testing.assert_allclose(head_output_norm(hf, [TOKENS]), head_output_norm(make("llama-gqa"), [TOKENS]), rtol=1e-5)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, '{"": "cpu"}', MIXED])
def test_a_folder_is_spread_as_a_map_says(make: Any, tmp_path: Path, device_map: Any) -> None:
    make("llama-gqa").save_pretrained(tmp_path)
    loaded = load(tmp_path, device_map=device_map)
    assert input_device(loaded.hf) == torch.device("cpu")
    assert loaded.weights_sha256 == load(tmp_path, device="cpu").weights_sha256
    assert (loaded.provenance()["device_map"] == MIXED) == (device_map == MIXED)
    expected = probe.trace(make("llama-gqa"), TOKENS, statistics=["entropy"])
    found = probe.trace(loaded, TOKENS, statistics=["entropy"])
    np.testing.assert_array_equal(np.asarray(found["entropy"]), np.asarray(expected["entropy"]))


@pytest.mark.parametrize("bad", ["somewhere", {}, {"lm_head": "somewhere"}, '{"', {1: "cpu"}, ["cpu"]])
def test_a_map_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(UsageError, match="device_map"):
        chosen_map(bad, None)


def test_a_map_and_a_device_cannot_both_be_chosen(make: Any, tmp_path: Path) -> None:
    make("llama-gqa").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="cannot both be chosen"):
        load(tmp_path, device="cpu", device_map="auto")
    with pytest.raises(UsageError, match="device_map cannot be chosen for a model object"):
        load(make("llama-gqa"), device_map="auto")


def test_a_model_whose_weights_were_never_loaded_is_refused(make: Any) -> None:
    with pytest.raises(NotAvailable, match=r"its weight model\.embed_tokens\.weight was never loaded"):
        load(make("llama-gqa").to("meta"))
    half = make("llama-gqa")
    half.model.layers[1].mlp.to("meta")
    with pytest.raises(NotAvailable, match=r"its weight model\.layers\.1\.mlp\.\w+\.weight was never loaded"):
        load(half)


def test_an_offloaded_model_is_not_moved_to_a_device(make: Any, tmp_path: Path) -> None:
    hf = offloaded(make("llama-gqa"), "disk", tmp_path)
    with pytest.raises(UsageError, match="cannot be put on cpu"):
        load(hf, device="cpu")


def test_a_model_that_is_there_is_never_copied(make: Any) -> None:
    hf = make("llama-gqa", tie_word_embeddings=True)
    before = {name: parameter.data_ptr() for name, parameter in hf.named_parameters()}
    loaded = load(hf, device="cpu")
    probe.trace(loaded, TOKENS, statistics=STATISTICS)
    assert loaded.hf is hf
    assert {name: parameter.data_ptr() for name, parameter in loaded.hf.named_parameters()} == before
    assert hf.lm_head.weight is hf.model.embed_tokens.weight

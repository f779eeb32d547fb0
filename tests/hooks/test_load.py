"""A model is found by name, folder or object, says what it is, and is never fetched behind one's back."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from probe.errors import NotAvailable, NotReproducible, UsageError
from probe.hooks.loading import find_model
from probe.hooks.models.huggingface import load


@pytest.fixture
def folder(make: Any, tmp_path: Path) -> Path:
    make("llama-gqa").to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(find_model, "getproxies", dict)


def test_a_folder_is_loaded_as_it_is_stored(folder: Path) -> None:
    model = load(str(folder), device="cpu")
    assert (model.dtype, model.name, model.tokenizer) == (torch.bfloat16, str(folder), None)
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


def test_dtype_and_attention_are_chosen_by_name(folder: Path) -> None:
    model = load(str(folder), dtype="float32", attention_implementation="eager", device="cpu")
    assert (model.dtype, model.attention_implementation) == (torch.float32, "eager")
    with pytest.raises(UsageError, match="unknown dtype 'int8'"):
        load(str(folder), dtype="int8")


def test_a_specimen_is_found_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_model, "specimens", lambda: {"magnet": folder})
    assert load("magnet").name == "magnet"
    with pytest.raises(NotAvailable, match=r"model 'magnit' is not a specimen \(magnet\), .* did you mean magnet\?"):
        load("magnit")


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "~/model", "a/b/c"])
def test_a_path_that_leads_nowhere_is_no_name_on_the_hub(name: str) -> None:
    with pytest.raises(NotAvailable, match=f"model '{name}': there is no such folder"):
        load(name)


def test_specimens_are_the_folders_with_a_config() -> None:
    for name, path in find_model.specimens().items():
        assert (path / "config.json").is_file()
        assert path.name == name


@pytest.mark.parametrize("broken", ["empty", "not json", "unknown type", "no weights", "torn weights"])
def test_a_folder_that_holds_no_model_is_named_with_the_reason(folder: Path, broken: str) -> None:
    if broken in ("empty",):
        for file in folder.iterdir():
            file.unlink()
    elif broken == "not json":
        (folder / "config.json").write_text("{")
    elif broken == "unknown type":
        (folder / "config.json").write_text('{"model_type": "no-such-architecture"}')
    elif broken == "no weights":
        (folder / "model.safetensors").unlink()
    else:
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999])
    with pytest.raises(NotAvailable, match="saved"):
        load(str(folder))


def changed(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Put tensors, by their names with "__" for a dot, into the folder's checkpoint, or take them out (None)."""
    held = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        held.pop(name.replace("__", "."), None)
        if tensor is not None:
            held[name.replace("__", ".")] = tensor
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name(folder: Path) -> None:
    changed(folder, model__layers__1__mlp__down_proj__weight=None, extra=torch.ones(3))
    reason = r"saved'.* lacks model\.layers\.1\.mlp\.down_proj\.weight; it would run on random weights"
    with pytest.raises(NotAvailable, match=reason):
        load(str(folder))


def test_a_tensor_of_another_shape_is_refused_by_its_name_and_shapes(folder: Path) -> None:
    changed(folder, model__norm__weight=torch.ones(33))
    with pytest.raises(NotAvailable, match=r"holds model\.norm\.weight as \(33,\), not \(32,\)"):
        load(str(folder))


def test_many_missing_tensors_are_counted(folder: Path) -> None:
    save_file({"model.norm.weight": torch.ones(32)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotAvailable, match=r"lacks lm_head\.weight, model\.embed_tokens\.weight, .* and 15 more"):
        load(str(folder))


def test_tied_weights_and_tensors_too_many_are_fine(make: Any, tmp_path: Path) -> None:
    make("llama-gqa", tie_word_embeddings=True).save_pretrained(tmp_path)
    changed(tmp_path, extra=torch.ones(3))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = load(str(tmp_path))
    assert torch.equal(model.hf.lm_head.weight, model.hf.model.embed_tokens.weight)


@pytest.mark.parametrize("changes", [{"num_attention_heads": 5}, {"hidden_size": "wide"}, {"rms_norm_eps": None}])
def test_a_configuration_that_cannot_be_is_named_with_the_reason(folder: Path, changes: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["head_dim"]
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(NotAvailable, match=r"saved' could not be loaded from .*: \w+: ") as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_model_that_predicts_no_next_token_is_refused_in_few_words(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(image_size=8, patch_size=4, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
    ViTModel(ViTConfig.from_dict({**config.to_dict(), "num_attention_heads": 4})).save_pretrained(tmp_path)
    with pytest.raises(NotAvailable, match=r": ViTConfig is not the configuration of a causal language model$"):
        load(str(tmp_path))


def test_why_there_is_no_tokenizer_is_kept(folder: Path) -> None:
    model = load(str(folder))
    assert model.tokenizer is None
    assert "Error: " in str(model.tokenizer_error)
    assert "\n" not in str(model.tokenizer_error)
    (folder / "tokenizer.json").write_text("{")
    assert load(str(folder)).tokenizer_error
    given = load(str(folder), tokenizer=dict)
    assert (given.tokenizer, given.tokenizer_error) == (dict, None)
    with pytest.raises(UsageError, match=r"tokenizer is a tokenizer object .*, not 'mine'"):
        load(str(folder), tokenizer="mine")


def test_loading_says_nothing_on_stderr_and_leaves_transformers_as_talkative_as_before(
    make: Any, tmp_path: Path
) -> None:
    make("llama-gqa", bos_token_id=99, eos_token_id=98).save_pretrained(tmp_path)
    code = (
        "import sys; from transformers.utils import logging; from probe.hooks.models.huggingface import load\n"
        "before = logging.get_verbosity(), logging.is_progress_bar_enabled()\n"
        "load(sys.argv[1], device='cpu')\n"
        "assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:99", "cpu:3", "xla", torch.device("meta"), 1.5])
def test_a_device_that_is_not_there_is_a_usage_error_that_tells_what_is(make: Any, folder: Path, device: Any) -> None:
    for what in (str(folder), make("llama-gqa")):
        with pytest.raises(UsageError, match=r"there is no device '.*' to run a model on; there is cpu"):
            load(what, device=device)


def test_cuda_is_refused_where_there_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"there is no device 'cuda' to run a model on; there is cpu$"):
        load(str(folder), device="cuda")


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", "banana", "load", torch.float8_e5m2, torch.int64, 3])
def test_a_dtype_that_no_model_runs_in_is_a_usage_error(folder: Path, dtype: Any) -> None:
    with pytest.raises(UsageError, match=r"unknown dtype '.*'; expected auto, float32, bfloat16, float16 or float64"):
        load(str(folder), dtype=dtype)


def test_a_refused_model_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=61, n_embd=32, n_layer=2, n_head=4, reorder_and_upcast_attn=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "asked")
    name = str(tmp_path / "asked")
    model = load(name, attention_implementation="eager")
    with pytest.raises(NotReproducible, match=rf"{name} \(GPT2LMHeadModel\)"), model.calls(None):
        pass


def test_a_model_object_is_taken_as_it_is(make: Any) -> None:
    hf = make("llama-gqa").train()
    model = load(hf, tokenizer=dict)
    assert model.hf is hf
    assert model.tokenizer is dict
    assert not hf.training
    assert all(parameter.requires_grad for parameter in hf.parameters())
    assert load(model) is model
    for option in ("dtype", "revision", "attention_implementation"):
        with pytest.raises(UsageError, match=f"{option} cannot be chosen"):
            load(hf, **{option: "x"})


def test_the_weights_hash_is_that_of_names_dtypes_shapes_and_bytes(make: Any) -> None:
    hf = make("llama-gqa")
    digest = hashlib.sha256()
    for name in sorted(hf.state_dict()):
        tensor = hf.state_dict()[name]
        digest.update(json.dumps([name, "torch.float32", list(tensor.shape)]).encode())
        digest.update(tensor.numpy().tobytes())
    assert load(hf).weights_sha256 == digest.hexdigest()
    assert load(make("llama-gqa")).weights_sha256 == digest.hexdigest()
    with torch.no_grad():
        hf.model.norm.weight[3] += 1e-6
    assert load(hf).weights_sha256 != digest.hexdigest()


def test_a_wordlevel_tokenizer_is_hashed_by_what_it_does(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    def made(words: list[str]) -> Any:
        vocabulary = {word: index for index, word in enumerate(words)}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="a")))

    made(["a", "b"]).save_pretrained(folder)
    one = load(str(folder)).provenance()["tokenizer_sha256"]
    assert one == load(str(folder)).provenance()["tokenizer_sha256"]
    made(["b", "a"]).save_pretrained(folder)
    assert load(str(folder)).provenance()["tokenizer_sha256"] != one


def test_provenance_is_json_and_names_what_matters(folder: Path) -> None:
    said = json.loads(json.dumps(load(str(folder), device="cpu").provenance()))
    assert said["architecture"] == "LlamaForCausalLM"
    assert (said["dtype"], said["device"], said["attention_implementation"]) == ("bfloat16", "cpu", "sdpa")
    assert set(said["versions"]) == {"python", "torch", "transformers"}
    assert load(str(folder)).card() == {}
    (folder / "specimen.json").write_text('{"seed": 3}')
    assert load(str(folder)).card() == {"seed": 3}


def test_remote_code_is_not_run_without_a_flag(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "planted", "auto_map": {"AutoConfig": "planted.C", "AutoModelForCausalLM": "planted.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "planted.py").write_text("open(__file__ + '.ran', 'w').close()\n")
    with pytest.raises(NotAvailable, match=r"code of its own, .* allow it with --trust-remote-code"):
        load(str(folder))
    assert not list(folder.rglob("*.ran"))

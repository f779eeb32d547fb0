"""A model is found by name, folder or object, says what it is, and is never fetched behind one's back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from probe.errors import NotAvailable, UsageError
from probe.hooks import find_model
from probe.hooks.huggingface import load


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


def test_a_model_object_is_taken_as_it_is(make: Any) -> None:
    hf = make("llama-gqa").train()
    model = load(hf, tokenizer="mine")
    assert model.hf is hf
    assert model.tokenizer == "mine"
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
    with pytest.raises(NotAvailable, match="contains custom code"):
        load(str(folder))
    assert not list(folder.rglob("*.ran"))

"""nnsight's own ways go on while its model is watched; what goes to NDIF is asked for, limited, and never logged."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import probe
from probe.command.cli import app
from probe.dry_run import dry_run
from probe.errors import NotAvailable, NotReproducible, UsageError
from probe.hooks.models.remote_model import RemoteModel
from tests.backends.conftest import made, rehearsed_on_ndif, seen_by_nnsight

nnsight = pytest.importorskip("nnsight")

TOKENS = torch.tensor([np.random.default_rng(5).integers(1, 90, 41).tolist()])


@pytest.mark.parametrize("wrap", ["TransformersModel", "NNsight"])
def test_a_trace_of_nnsights_goes_on_while_it_is_watched(wrap: str) -> None:
    hf = made("llama")
    lm = seen_by_nnsight(hf) if wrap == "TransformersModel" else nnsight.NNsight(hf)
    model, layers = probe.load(lm), []
    with torch.no_grad(), lm.trace(TOKENS):
        expected = lm.model.layers[0].output.save()
    with torch.no_grad(), model.calls(lambda _, call: layers.append((call.layer, call.phase))), lm.trace(TOKENS):
        hidden = lm.model.layers[0].output.save()
        query = lm.model.layers[1].self_attn.source.attention_interface_1.inputs[0][1].save()
        logits = lm.output.logits.save()
    assert layers == [(0, "prefill"), (0, "decode"), (1, "prefill"), (1, "decode")]
    assert torch.equal(hidden, expected)
    assert query.shape == (1, 4, 41, 8)
    assert torch.equal(logits, hf(TOKENS).logits)


def test_what_a_trace_of_nnsights_changes_is_in_the_calls() -> None:
    lm = seen_by_nnsight(made("llama"))
    found: dict[Any, Any] = {}

    def keep(_: int, call: Any) -> None:
        found[call.layer, call.phase] = call

    with torch.no_grad(), probe.load(lm).calls(keep), lm.trace(TOKENS):
        lm.model.layers[1].self_attn.q_proj.output[:] = 0
    assert not found[1, "prefill"].query.any()
    assert found[0, "prefill"].query.any()


def test_an_ablation_acts_within_a_trace_of_nnsights() -> None:
    lm = seen_by_nnsight(made("llama"))
    with torch.no_grad(), probe.ablate_heads([(0, 1)])(lm):
        with lm.trace(TOKENS):
            heads = lm.model.layers[0].self_attn.source.attention_interface_1.output[0].save()
            logits = lm.output.logits.save()
        assert torch.equal(logits, lm._module(TOKENS).logits)
    assert not heads[:, :, 1].any()
    with torch.no_grad():
        assert not torch.equal(logits, lm._module(TOKENS).logits)


def test_the_model_is_bit_identical_afterwards_and_not_copied() -> None:
    hf = made("llama")
    lm = seen_by_nnsight(hf)
    # Asked once for its attention, a transformers model notes that it can hand it out.
    before, own = hf(TOKENS, output_attentions=True).logits, {"_output_capturing_hooks_installed"}
    names = {id(m): set(vars(m)) - own for m in hf.modules()}
    model: Any = probe.load(lm)
    probe.trace(model, TOKENS[0].tolist(), statistics=["entropy", "residual_norm", "loss"])
    assert model.hf is hf
    assert model.envoy is lm
    assert torch.equal(hf(TOKENS).logits, before)
    assert {id(m): set(vars(m)) - own for m in hf.modules()} == names


@pytest.mark.parametrize("name", ["bart", "bert"])
def test_encoders_are_read_as_they_are_without_nnsight(name: str) -> None:
    from probe.conformance.random_model import random_model, recipe

    hf = random_model(recipe(name)).eval()
    asked = {"statistics": ["entropy", "received_mass"], "max_new_tokens": 1}
    tokens = [token % 50 + 3 for token in TOKENS[0].tolist()[:20]]
    plain, seen = probe.load(hf), probe.load(nnsight.NNsight(hf))
    expected, actual = probe.trace(plain, tokens, **asked), probe.trace(seen, tokens, **asked)
    assert type(plain) in type(seen).__mro__
    for statistic in asked["statistics"]:
        np.testing.assert_allclose(actual[statistic].values, expected[statistic].values, atol=1e-6)


def test_a_transformers_object_is_not_wrapped_behind_the_users_back() -> None:
    with pytest.raises(UsageError, match="do it yourself"):
        probe.load(made("llama"), backend="nnsight")


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_request_packed_as_for_ndif_brings_the_same_back(family: str) -> None:
    asked = {"statistics": ["entropy", "received_mass", "residual_norm", "loss"], "max_new_tokens": 2}
    expected = probe.trace(probe.load(made(family)), TOKENS[0].tolist(), **asked)
    packed = RemoteModel(seen_by_nnsight(made(family)), remote="local")
    actual = probe.trace(packed, TOKENS[0].tolist(), **asked)
    for name in asked["statistics"]:
        np.testing.assert_allclose(actual[name].values, expected[name].values, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert actual.outcome.response_tokens == expected.outcome.response_tokens


def test_what_comes_back_is_counted_and_limited() -> None:
    model = rehearsed_on_ndif(made("llama"))
    # Queries of 4 heads, keys and values of 2, 8 wide, in 2 layers; logits over 97 tokens; 4 bytes each.
    assert model.bytes_back(10) == 4 * (10 * 2 * (4 * 8 + 2 * 2 * 8) + 10 * 97)
    assert model.bytes_back(10, logits=False) == 4 * (10 * 2 * (4 * 8 + 2 * 2 * 8) + 97)
    small = RemoteModel(model.envoy, remote=False, remote_gigabytes=1e-5)
    with pytest.raises(UsageError, match=r"41 tokens would bring 3.\de-05 GB .* 1e-05 GB are allowed"):
        small.prefill(TOKENS[0].tolist(), on_logits=lambda *_: None)


def test_an_intervention_is_not_sent() -> None:
    model = rehearsed_on_ndif(made("llama"))
    with pytest.raises(NotReproducible, match="not sent to NDIF"), probe.ablate_heads([(0, 1)])(model):
        pass
    with probe.ablate_heads([(0, 1)])(model.hf), pytest.raises(NotReproducible, match="not sent to NDIF"):
        model.step(model.prefill([]), [3, 4])


def test_neither_prompt_nor_key_is_logged_when_a_request_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lm = seen_by_nnsight(made("llama"))
    secret = "a-key-that-is-secret"
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", secret)

    def fails(*_: Any, **__: Any) -> Any:
        raise ConnectionError(f"{secret} {TOKENS.tolist()}")

    with caplog.at_level(logging.DEBUG, logger="probe"):
        model = RemoteModel(lm, name="some/model", remote=True)
        assert "every prompt leaves this machine" in caplog.text
        monkeypatch.setattr(type(lm), "trace", fails)
        with pytest.raises(NotAvailable, match="the request to NDIF failed with ConnectionError") as caught:
            model.step(model.prefill([]), TOKENS[0].tolist())
    said = caplog.text + str(caught.value) + str(caught.value.__cause__)
    assert secret not in said
    assert str(TOKENS[0, 0].item()) + ", " not in said
    assert "41 tokens go to NDIF" in caplog.text


def test_a_request_that_fails_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lm = seen_by_nnsight(made("llama"))
    monkeypatch.setattr(type(lm), "trace", lambda *_, **__: (_ for _ in ()).throw(ConnectionError()))
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", None)
    model = RemoteModel(lm, name="some/model", remote=True)
    with pytest.raises(NotAvailable, match="ConnectionError; no key is set: put yours into NDIF_API_KEY"):
        model.step(model.prefill([]), TOKENS[0].tolist())
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "a-key")
    of_folder = RemoteModel(lm, name=str(tmp_path), remote=True)
    with pytest.raises(NotAvailable, match="ConnectionError; NDIF knows a model by its hub id, and this is a folder"):
        of_folder.step(of_folder.prefill([]), TOKENS[0].tolist())


def test_nothing_is_remote_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = seen_by_nnsight(made("llama"))
    monkeypatch.setattr(type(lm), "_remote_backend", lambda *_: pytest.fail("a request was made"))
    model = probe.load(lm)
    probe.trace(model, TOKENS[0].tolist(), statistics=["entropy"])
    assert not model.is_remote
    assert "remote" not in model.provenance()


def test_a_model_on_ndif_is_known_by_its_configuration_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from probe.hooks.loading.find_model import specimens

    expected = probe.load("needle")
    model: Any = probe.load(str(specimens()["needle"]), backend="nnsight", remote=True)
    assert all(weight.is_meta for weight in model.hf.parameters())
    assert (model.num_heads, model.num_kv_heads) == (expected.num_heads, expected.num_kv_heads)
    assert (model.head_dim, model.vocab_size) == (expected.head_dim, expected.vocab_size)
    assert model.provenance()["remote"] == "NDIF: the prompts left this machine"
    # The card of a specimen lies beside its configuration, and says what it was trained for.
    assert model.positions(10)["training_length"] == expected.positions(10)["training_length"]
    # nnsight's rehearsal of a request gives it weights where NDIF would have them, and takes them away again.
    model.remote = "local"
    actual, trace = (probe.trace(each, "the code of red is 3 .", statistics=["entropy"]) for each in (model, expected))
    np.testing.assert_allclose(actual["entropy"].values, trace["entropy"].values, atol=1e-5)
    assert all(weight.is_meta for weight in model.hf.parameters())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"backend": "transformer_lens", "remote": True}, "remote is for nnsight"),
        ({"backend": "huggingface", "remote": True}, "remote is for nnsight"),
        ({"backend": "somewhere"}, "there is no backend 'somewhere'; there are huggingface, nnsight, transformer_lens"),
        ({"backend": "nnsight", "remote_gigabytes": 3}, "remote was not asked for"),
        ({"remote": True, "dtype": "bfloat16"}, "dtype cannot be chosen for a model on NDIF"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        probe.load("needle", **options)


@pytest.mark.parametrize(("backend", "extra"), [("transformer_lens", "lens"), ("nnsight", "nnsight")])
def test_a_missing_library_is_named_with_its_extra(backend: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotAvailable, match=rf"{backend}, which is not installed: pip install '.*\[{extra}\]'"):
        probe.load("needle", backend=backend)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_the_command_takes_a_backend(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    casebook = tmp_path / "small.yaml"
    casebook.write_text(
        "name: small\nquestion: One look.\nmodel: needle\n"
        "workload: {needle: {lengths: [48], depths: [0.5], samples: 1}}\n"
        "stages:\n  - name: look\n    capture: [entropy]\n    conditions: {plain: {role: baseline}}\n"
    )
    out = tmp_path / "run"
    told = CliRunner().invoke(app, ["run", str(casebook), "--backend", backend, "--out", str(out), "--quiet"])
    assert told.exit_code == 0, told.output
    run: Any = probe.open(out)
    assert next(iter(run.traces())).provenance["backend"] == backend
    again = CliRunner().invoke(app, ["run", str(casebook), "--out", str(out), "--quiet"])
    assert again.exit_code == 6
    assert "backend" in again.output + again.stderr


def test_a_dry_run_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from probe import capture

    model = rehearsed_on_ndif(made("llama"))
    model.tokenizer = probe.load("needle").tokenizer
    monkeypatch.setattr(capture, "load", lambda *_, **__: model)
    with pytest.raises(UsageError, match="would leave this machine"):
        dry_run("first-look", remote=True, out=tmp_path / "run")

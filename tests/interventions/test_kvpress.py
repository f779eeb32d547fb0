"""kvpress' presses as interventions: against kvpress' own cut cache, ours of the same definition, and refusals."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

import probe
from probe.errors import UsageError
from probe.hooks.intervention import Intervention
from probe.hooks.key_norm import key_norm
from probe.hooks.kvpress import kvpress
from probe.hooks.snapkv import snapkv
from tests.interventions.dense_model import llama, qwen3, tokens

INSTALLED = importlib.util.find_spec("kvpress") is not None
needs_kvpress = pytest.mark.skipif(not INSTALLED, reason="kvpress is not installed")


@pytest.mark.skipif(INSTALLED, reason="kvpress is installed")
def test_it_is_refused_by_name_where_kvpress_is_not_installed() -> None:
    asked = kvpress("SnapKVPress", {"compression_ratio": 0.5})
    with pytest.raises(UsageError, match=r"'SnapKVPress' needs the package kvpress"), asked(llama()):
        pass
    with pytest.raises(UsageError, match="needs the package kvpress"):
        asked.check(llama(), probe.Sample("s", (1, 2)))


def test_it_comes_back_from_json() -> None:
    asked = kvpress("SnapKVPress", {"compression_ratio": 0.5, "window_size": 8}, last_token="full")
    assert Intervention.from_json(asked.to_json()) == asked


@pytest.mark.parametrize(("fields", "named"), [
    ({"last_token": "half"}, "last_token"), ({"phase": "prefill"}, "phase"), ({"arguments": 0.5}, "arguments"),
])  # fmt: skip
def test_fields_that_cannot_be(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"kvpress: {named}"):
        kvpress("KnormPress", **fields)


@needs_kvpress
@pytest.mark.parametrize(("press", "arguments", "named"), [
    ("NoPress", {}, "press 'NoPress' does not score keys"), ("ThinKPress", {}, "does not score keys"),
    ("AdaKVPress", {}, "does not score keys"), ("ScorerPress", {}, "does not score keys"),
    ("KnormPress", {"ratio": 1}, "arguments"), ("KnormPress", {"compression_ratio": 2}, "arguments"),
])  # fmt: skip
def test_presses_that_cannot_be_run(press: str, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named), kvpress(press, arguments)(llama()):
        pass


@needs_kvpress
def test_a_press_that_cannot_score_is_named() -> None:
    model, ids = llama(), torch.tensor([tokens(20)])
    asked = kvpress("SnapKVPress", {"compression_ratio": 0.5, "window_size": 64})
    with asked(model), pytest.raises(UsageError, match=r"'SnapKVPress' cannot score the keys of layer 0.*window size"):
        model(ids)


def answered(model: Any, asked: Any, ids: list[int], chunk_tokens: int = 2048) -> torch.Tensor:
    with asked(model):
        pieces = probe.load(model)
        state = pieces.prefill(ids[:-1], chunk_tokens=chunk_tokens)
        return torch.cat([pieces.step(state, [token]) for token in (ids[-1], 7, 9)])


@needs_kvpress
@pytest.mark.parametrize("make", [llama, qwen3])
@pytest.mark.parametrize("last_token", ["evicted", "full"])
def test_ours_of_the_same_definition_keep_the_same(make: Any, last_token: Any) -> None:
    # No token stands twice: equal keys would be ties.
    ids, model = torch.randperm(61, generator=torch.Generator().manual_seed(0)).tolist(), make()
    budget = int(len(ids) * 0.5)
    half = {"compression_ratio": 0.5}
    same = [
        (kvpress("KnormPress", half, last_token=last_token), key_norm(budget, last_token=last_token)),
        (
            kvpress("SnapKVPress", {**half, "window_size": 8}, last_token=last_token),
            snapkv(budget, window=8, last_token=last_token),
        ),
    ]
    for press, ours in same:
        made = answered(model, press, ids)
        torch.testing.assert_close(made, answered(model, ours, ids), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(made, answered(model, press, ids, chunk_tokens=17), rtol=1e-5, atol=1e-5)


@needs_kvpress
@pytest.mark.parametrize(("press", "arguments"), [
    ("SnapKVPress", {"window_size": 8}), ("TOVAPress", {}), ("KeyDiffPress", {}), ("KnormPress", {}),
    ("ExpectedAttentionPress", {"n_future_positions": 16}), ("StreamingLLMPress", {}), ("LagKVPress", {"lag_size": 8}),
])  # fmt: skip
def test_it_answers_as_kvpress_own_cut_cache(press: str, arguments: dict[str, Any]) -> None:
    """The press' own `compress` cuts transformers' cache; positions go on as if nothing had been cut."""
    import kvpress as package

    model, ids, ratio = llama(), tokens(61), {"compression_ratio": 0.4}
    own = getattr(package, press)(**arguments, **ratio)
    seen: dict[int, Any] = {}
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda m, a, k: seen.__setitem__(m.layer_idx, k), with_kwargs=True)
        for layer in model.model.layers
    ]
    with torch.no_grad():
        cache = model(torch.tensor([ids]), use_cache=True).past_key_values
        for layer in model.model.layers:
            kept, module = cache.layers[layer.self_attn.layer_idx], layer.self_attn
            module.rotary_emb = model.model.rotary_emb
            given = seen[module.layer_idx]
            kept.keys, kept.values = own.compress(module, given["hidden_states"], kept.keys, kept.values, None, given)
            del module.rotary_emb
        for hook in hooks:
            hook.remove()
        expected = model(torch.tensor([[7]]), past_key_values=cache, position_ids=torch.tensor([[61]])).logits[0]
    with kvpress(press, {**arguments, **ratio}, last_token="full")(model):
        pieces = probe.load(model)
        state = pieces.prefill(ids[:-1], chunk_tokens=25)
        pieces.step(state, ids[-1:])
        made = pieces.step(state, [7])
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    assert not hasattr(model.model.layers[0].self_attn, "rotary_emb")

"""A cache in the host's memory is bit by bit the one on the device, and goes back like it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from probe.errors import UsageError
from probe.hooks.models.huggingface import load
from probe.hooks.sequence import decoding_state
from probe.hooks.sequence.host_cache import host_hybrid_layer, host_layer

KINDS = ["llama-gqa", "qwen3-sliding-full", "gpt2", "deepseek-v3-value-width", "gpt-oss-sinks", "falcon_h1"]
FIELDS = {"falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "head_dim": 8}}


@pytest.fixture(autouse=True)
def _accelerator(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The model's device counts as another than the host."""
    if "on_a_cpu" not in request.node.name:
        monkeypatch.setattr(decoding_state, "_computes_on_host", lambda model: False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_tokens", [1, 7, 64])
def test_logits_and_calls_are_those_of_a_cache_on_the_device(
    make: Any, tokens: Any, attention: Any, kind: str, chunk_tokens: int
) -> None:
    model, prompt = load(make(kind, **FIELDS.get(kind, {}))), tokens(40).tolist()
    found: dict[str, list[Tensor]] = {}
    for cache in ("device", "offload"):
        logits = found.setdefault(cache, [])
        seen = type(attention)()
        with model.calls(seen):
            state = model.prefill(
                prompt[:37],
                chunk_tokens=chunk_tokens,
                on_logits=lambda start, rows, logits=logits: logits.append(rows),
                cache=cache,  # type: ignore[arg-type]
            )
            logits += [model.step(state, [token]) for token in prompt[37:]]
        logits += [each for _, call in seen.calls for each in (call.query, call.key, call.value)]
    assert len(found["device"]) == len(found["offload"])
    for one, other in zip(found["device"], found["offload"], strict=True):
        assert torch.equal(one, other)
    kinds = {type(layer) for layer in state.cache.layers}
    assert (host_hybrid_layer if kind == "falcon_h1" else host_layer) in kinds


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen3-sliding-full", "gpt2"])
@pytest.mark.parametrize("num_prompt", [0, 3, 23])
def test_rolled_back_it_is_as_if_nothing_had_gone_in(make: Any, tokens: Any, kind: str, num_prompt: int) -> None:
    model, prompt = load(make(kind)), tokens(num_prompt).tolist()
    state, untouched = (model.prefill(prompt, chunk_tokens=8, cache="offload") for _ in range(2))
    for surplus in (1, 9, 40):
        before = model.mark(state)
        model.step(state, tokens(surplus, seed=surplus).tolist())
        model.rollback(state, before)
    for token in (7, 11, 13):
        assert torch.equal(model.step(state, [token]), model.step(untouched, [token]))


def test_a_chunk_that_failed_half_way_is_taken_back(make: Any, tokens: Any) -> None:
    model, prompt, room = load(make("llama-gqa")), tokens(150).tolist(), [64]
    expected: list[Tensor] = []
    model.prefill(prompt, chunk_tokens=32, on_logits=lambda start, rows: expected.append(rows))

    def refuse(module: Any, args: Any) -> None:
        if args[0].shape[1] > 32:
            room.append(args[0].shape[1])
            raise torch.OutOfMemoryError("too much")

    hook = model.hf.model.layers[1].register_forward_pre_hook(refuse)
    found: list[Tensor] = []
    model.prefill(prompt, chunk_tokens=64, on_logits=lambda start, rows: found.append(rows), cache="offload")
    hook.remove()
    assert room == [64, 64]
    assert torch.equal(torch.cat(found), torch.cat(expected))


def test_the_host_holds_its_own_copy_in_room_that_grows_seldom() -> None:
    layer, grown, expected = host_layer(), 0, torch.zeros(1, 2, 0, 8)
    for step in range(100):
        new = torch.randn(1, 2, 1 + step % 3, 8)
        expected = torch.cat([expected, new], dim=2)
        before = layer.keys.untyped_storage().data_ptr() if step else 0
        keys, values = layer.update(new, -new)
        grown += before != layer.keys.untyped_storage().data_ptr()
        assert torch.equal(keys, expected)
        assert torch.equal(values, -expected)
        assert torch.equal(layer.keys, expected)
        assert keys.untyped_storage().data_ptr() != layer.keys.untyped_storage().data_ptr()
        assert layer.get_seq_length() == expected.shape[2]
    assert grown < 20
    assert layer.keys.untyped_storage().nbytes() <= 1.5 * expected.nbytes


def test_on_a_cpu_it_is_said_to_change_nothing(make: Any, tokens: Any, caplog: Any) -> None:
    model = load(make("llama-gqa"))
    with caplog.at_level(logging.INFO, "probe"):
        state = model.prefill(tokens(9).tolist(), cache="offload")
    assert "cache='offload' changes nothing on a CPU" in caplog.text
    assert not any(isinstance(layer, host_layer) for layer in state.cache.layers)


def test_another_place_is_refused(make: Any) -> None:
    with pytest.raises(UsageError, match="cache is 'disk'; expected device, offload"):
        load(make("llama")).prefill([3], cache="disk")  # type: ignore[arg-type]

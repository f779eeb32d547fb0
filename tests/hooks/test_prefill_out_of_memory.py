"""A chunk that the device has no room for is halved; nothing is handed out twice, and the result is the same."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from probe.errors import DeviceTooSmall
from probe.hooks.models.huggingface import HuggingFaceModel, load
from probe.hooks.sequence.prefill import prefill
from probe.kernels.call import Call

KINDS = ["llama-gqa", "qwen3-sliding-full", "mistral-window", "gpt2", "gemma3"]
REFUSED = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB."
REFUSED_BY_A_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "40000000000 bytes. Error code 12 (Cannot allocate memory)"
)
"""As torch 2.13 words it, for a RuntimeError that is no `torch.OutOfMemoryError`."""


class small_device:
    """Runs out of memory where the modules named are given more tokens than there is room for, so many times."""

    def __init__(self, model: HuggingFaceModel, modules: list[nn.Module], room: int, times: int = 10**9) -> None:
        self.model, self.modules, self.room, self.times = model, modules, room, times
        self.refused: list[int] = []
        self.error: RuntimeError = torch.OutOfMemoryError(REFUSED)

    def __enter__(self) -> small_device:
        self.hooks = [each.register_forward_pre_hook(self.refuse, with_kwargs=True) for each in self.modules]
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self.hooks:
            hook.remove()

    def refuse(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] > self.room and len(self.refused) < self.times:
            self.refused.append(hidden.shape[1])
            raise self.error


class reader:
    """Everything that a prompt hands out, put together; complains of what comes twice or out of order."""

    def __init__(self) -> None:
        self.queries: dict[int, list[Tensor]] = {}
        self.residuals: dict[int, list[Tensor]] = {}
        self.logits: list[Tensor] = []

    def on_call(self, sample: int, call: Call) -> None:
        seen = self.queries.setdefault(call.layer, [])
        assert call.query_start == sum(each.shape[1] for each in seen)
        assert call.key_start + call.num_keys >= call.query_start + call.num_queries
        assert call.log_sum_exp is None or call.log_sum_exp.shape == call.query.shape[:2]
        seen.append(call.query)

    def on_residual(self, layer: int, sample: int, hidden: Tensor) -> None:
        self.residuals.setdefault(layer, []).append(hidden)

    def on_logits(self, start: int, logits: Tensor) -> None:
        assert start == sum(len(each) for each in self.logits)
        self.logits.append(logits)

    def everything(self) -> dict[str, Tensor]:
        return {
            **{f"queries of layer {layer}": torch.cat(each, dim=1) for layer, each in self.queries.items()},
            **{f"residuals of layer {layer}": torch.cat(each) for layer, each in self.residuals.items()},
            "logits": torch.cat(self.logits),
        }


def parts(model: HuggingFaceModel) -> dict[str, list[nn.Module]]:
    layers = next(each for each in model.hf.modules() if isinstance(each, nn.ModuleList))
    return {
        "first layer": [next(layers[0].modules())],
        "last layer": [next(layers[-1].modules())],
        "head": [model.hf.get_output_embeddings()],
    }


def read(model: HuggingFaceModel, prompt: list[int], chunk_tokens: int) -> tuple[dict[str, Tensor], Tensor]:
    seen = reader()
    with model.calls(seen.on_call, seen.on_residual):
        state = model.prefill(prompt, chunk_tokens=chunk_tokens, on_logits=seen.on_logits)
    return seen.everything(), model.step(state, [7])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["first layer", "last layer"])
@pytest.mark.parametrize(("room", "times"), [(20, 10**9), (70, 1)])
def test_the_result_is_that_of_a_device_with_room(
    make: Any, tokens: Any, caplog: Any, kind: str, where: str, room: int, times: int
) -> None:
    model, prompt = load(make(kind)), tokens(230).tolist()
    expected, next_expected = read(model, prompt, 230)
    with small_device(model, parts(model)[where], room, times) as device, caplog.at_level(logging.WARNING, "probe"):
        found, next_found = read(model, prompt, 80)
    assert device.refused == ([80, 40] if times > 1 else [80])
    for name, values in expected.items():
        close = {"rtol": 1e-4, "atol": 1e-5 * float(values.abs().max())}
        torch.testing.assert_close(found[name], values, **close, msg=lambda said, name=name: f"{name} {said}")
    torch.testing.assert_close(next_found, next_expected, rtol=1e-4, atol=1e-5 * float(next_expected.abs().max()))
    said = [record.getMessage() for record in caplog.records if record.name == "probe"]
    assert len(said) == len(device.refused)
    assert "has no room for a chunk of 80 tokens after 0 others: 2.00 GiB were asked for" in said[0]
    assert said[0].endswith("going on in chunks of 40")


def test_a_cpu_without_room_is_told_by_its_own_words(make: Any, tokens: Any, caplog: Any) -> None:
    model, prompt = load(make("llama-gqa")), tokens(230).tolist()
    expected, _ = read(model, prompt, 80)
    device = small_device(model, parts(model)["last layer"], 60)
    with device, caplog.at_level(logging.WARNING, "probe"):
        device.error = RuntimeError(REFUSED_BY_A_CPU)
        found, _ = read(model, prompt, 80)
    assert device.refused == [80]
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5 * float(values.abs().max()))
    (said,) = [record.getMessage() for record in caplog.records if record.name == "probe"]
    assert "cpu has no room for a chunk of 80 tokens after 0 others: 40000000000 bytes were asked for" in said

    def fails(*_: Any) -> None:
        raise RuntimeError(REFUSED_BY_A_CPU)

    for readers in ((fails, None), (None, fails)):
        with model.calls(*readers), pytest.raises(DeviceTooSmall, match="ran out of device memory"):
            model.prefill(prompt)
    with pytest.raises(DeviceTooSmall, match="what reads the logits ran out of device memory"):
        model.prefill(prompt, on_logits=fails)


def test_room_that_ends_in_the_middle_of_a_prompt_costs_nothing_of_what_came_before(make: Any, tokens: Any) -> None:
    model, prompt = load(make("llama-gqa")), tokens(230).tolist()
    expected, _ = read(model, prompt, 230)
    seen, device = reader(), small_device(model, parts(model)["last layer"], 10**9)

    def on_logits(start: int, logits: Tensor) -> None:
        seen.on_logits(start, logits)
        # The cache has grown: what fitted does so no longer.
        device.room = 40

    with model.calls(seen.on_call, seen.on_residual), device:
        state = model.prefill(prompt, chunk_tokens=64, on_logits=on_logits)
    assert state.num_tokens == 230
    assert device.refused == [64]
    assert [len(each) for each in seen.logits] == [64, 32, 32, 32, 32, 32, 6]
    # What the first layer handed out of the chunk that failed in the second is not asked for again.
    assert [each.shape[1] for each in seen.queries[0]] == [64, 64, 32, 32, 32, 6]
    for name, values in expected.items():
        torch.testing.assert_close(seen.everything()[name], values, rtol=1e-4, atol=1e-5 * float(values.abs().max()))


def test_the_logits_that_were_handed_out_before_the_head_failed_come_once(make: Any, tokens: Any) -> None:
    model, prompt = load(make("llama-gqa", max_position_embeddings=1024)), tokens(700).tolist()
    expected, _ = read(model, prompt, 700)
    calls = [0]

    def refuse(module: nn.Module, args: Any) -> None:
        calls[0] += args[0].shape[1] == 256
        # Of three slices of the one chunk the second fails.
        if calls[0] == 2 and args[0].shape[1] == 256:
            calls[0] += 1
            raise torch.OutOfMemoryError(REFUSED)

    read(model, prompt[:20], 20)
    hook = model.hf.get_output_embeddings().register_forward_pre_hook(refuse)
    found, _ = read(model, prompt, 700)
    hook.remove()
    assert calls[0] > 3
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5 * float(values.abs().max()))


@pytest.mark.parametrize(("chunk_tokens", "smallest"), [(230, 28), (64, 16), (20, 20), (3, 3)])
def test_below_the_smallest_chunk_the_sum_is_told(make: Any, tokens: Any, chunk_tokens: int, smallest: int) -> None:
    model, prompt = load(make("llama-gqa")), tokens(230).tolist()
    weights = sum(each.nbytes for each in [*model.hf.parameters(), *model.hf.buffers()])
    reason = (
        rf"LlamaForCausalLM: cpu has no room for a chunk of {smallest} tokens after 0 others: 2.00 GiB were asked for, "
        rf"the weights hold {round(weights / 1024)} KiB, the cache of 0 tokens holds 0 B there; chunks are not made "
        r"smaller than 16 tokens"
    )
    with small_device(model, parts(model)["last layer"], 0) as device, pytest.raises(DeviceTooSmall, match=reason):
        model.prefill(prompt, chunk_tokens=chunk_tokens)
    assert device.refused[-1] == smallest
    assert model.prefill(prompt).num_tokens == 230


def test_the_cache_is_in_the_sum(make: Any, tokens: Any) -> None:
    model = load(make("llama-gqa"))
    seen: list[int] = []
    device = small_device(model, parts(model)["first layer"], 10**9)

    def on_logits(start: int, logits: Tensor) -> None:
        seen.append(start)
        device.room = 0 if start == 32 else device.room

    # Two layers, keys and values, 2 heads of 8 channels in float32, 64 tokens.
    reason = r"17 tokens after 64 others.*the cache of 64 tokens holds 16 KiB there"
    with device, pytest.raises(DeviceTooSmall, match=reason):
        model.prefill(tokens(81).tolist(), chunk_tokens=32, on_logits=on_logits)
    assert seen == [0, 32]


def test_a_reader_that_runs_out_of_memory_is_named_and_not_given_the_chunk_again(make: Any, tokens: Any) -> None:
    model, times = load(make("llama-gqa")), [0]

    def fails(*_: Any) -> None:
        times[0] += 1
        raise torch.OutOfMemoryError(REFUSED)

    prompt = tokens(100).tolist()
    reason = r"LlamaForCausalLM, layer 0: what reads its attention ran out of device memory at 100 queries × 100 keys"
    with model.calls(fails), pytest.raises(DeviceTooSmall, match=reason):
        model.prefill(prompt)
    reason = "LlamaForCausalLM, layer 0: what reads its output ran out of device memory at 100 tokens"
    with model.calls(None, fails), pytest.raises(DeviceTooSmall, match=reason):
        model.prefill(prompt)
    with pytest.raises(DeviceTooSmall, match="what reads the logits ran out of device memory at 100 tokens"):
        model.prefill(prompt, on_logits=fails)
    assert times == [3]


def test_a_cache_without_a_way_back_says_so(make: Any, tokens: Any) -> None:
    class unknown(DynamicLayer):  # type: ignore[misc]
        pass

    model = load(make("llama-gqa"))
    with small_device(model, [model.hf.model.layers[1]], 20):
        state = model.prefill(tokens(17).tolist())
        state.cache.layers = [unknown() for _ in range(2)]
        reason = r"cannot be halved .*cannot be rolled back\): ask for smaller chunks"
        with pytest.raises(DeviceTooSmall, match=reason):
            prefill(model.hf, state, tokens(40).tolist(), chunk_tokens=2048, on_logits=None)


def test_other_errors_are_not_taken_for_it(make: Any, tokens: Any) -> None:
    model = load(make("llama-gqa"))
    hook = model.hf.model.layers[1].register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.prefill(tokens(100).tolist())
    hook.remove()

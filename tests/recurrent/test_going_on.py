"""A recurrent or hybrid model in chunks, token by token, mixed and back again: what one forward of it gives."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from probe.errors import DeviceTooSmall, NotReproducible
from probe.hooks.models.huggingface import HuggingFaceModel, load
from probe.hooks.sequence import continuation, decoding_state
from probe.hooks.sequence.continuation import continuation_of

_MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
_CONVOLVED = {"layer_types": ["conv", "full_attention"]}
# By model type: what `make` does not know of its configuration, and what transformers 5.23 has to be helped with.
KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "mamba": ({}, ("scan_from_state",)),
    "falcon_mamba": ({}, ("scan_from_state",)),
    "jamba": ({}, ("scan_from_state",)),
    "zamba": ({}, ("scan_from_state",)),
    "mamba2": ({}, ()),
    "zamba2": ({}, ()),
    "bamba": ({}, ("given_positions",)),
    "falcon_h1": ({}, ()),
    "nemotron_h": ({}, ()),
    "granitemoehybrid": ({}, ()),
    "qwen3_next": ({}, ()),
    "qwen3_5_text": ({}, ()),
    "olmo_hybrid": ({}, ()),
    "kimi_linear": ({}, ()),
    "minimax": ({}, ()),
    "recurrent_gemma": ({}, ("convolution_from_state",)),
    "rwkv": ({}, ()),
    "xlstm": ({"hidden_size": 128, "num_heads": 2, "chunk_size": 16, "autocast_kernel_dtype": "float32"}, ()),
    "lfm2": (_CONVOLVED, ()),
    "lfm2_moe": ({**_CONVOLVED, **_MOE, "num_dense_layers": 1}, ()),
    "lfm3": ({**_CONVOLVED, "head_dim": 8, "sliding_window": 7}, ()),
    "zaya": ({**_MOE, "head_dim": 8, "router_hidden_size": 16}, ()),
}
EVERY = pytest.mark.parametrize("kind", KINDS)
# One that only recurs of each form, and hybrids with full and with sliding attention.
FEW = pytest.mark.parametrize("kind", ["mamba", "mamba2", "falcon_h1", "recurrent_gemma", "rwkv", "minimax", "xlstm"])


@pytest.fixture(name="loaded")
def _loaded(make: Any) -> Any:
    def loaded(kind: str) -> HuggingFaceModel:
        if kind not in CONFIG_MAPPING:
            pytest.skip(f"this transformers has no {kind}")
        return load(make(kind, **KINDS[kind][0]))

    return loaded


def whole(model: HuggingFaceModel, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def in_pieces(model: HuggingFaceModel, ids: Sequence[int], chunk_tokens: int) -> tuple[Tensor, Any]:
    found: list[Tensor] = []
    state = model.prefill(ids, chunk_tokens=chunk_tokens, on_logits=lambda _, logits: found.append(logits))
    return torch.cat(found), state


@EVERY
def test_what_has_to_be_done_for_a_model_is_known(loaded: Any, kind: str) -> None:
    found = continuation_of(loaded(kind).hf, several=True)
    assert found.works
    assert tuple(type(each).__name__ for each in found.repairs) == KINDS[kind][1]


@EVERY
@pytest.mark.parametrize("chunk_tokens", [1, 7, 64])
def test_a_prompt_in_chunks_gives_the_logits_and_states_of_one_forward(
    loaded: Any, tokens: Any, kind: str, chunk_tokens: int
) -> None:
    model, ids = loaded(kind), tokens(30 if chunk_tokens == 1 else 145)
    found, state = in_pieces(model, ids, chunk_tokens)
    expected, at_once = in_pieces(model, ids, len(ids))
    assert_equal(expected, whole(model, ids))
    assert_equal(found, expected)
    if chunk_tokens > 1 or not continuation_of(model.hf, several=False).own_step:
        assert state.prompt.startswith(f"in chunks of at most {chunk_tokens} tokens")
    for one, other in zip(state.tensors(), at_once.tensors(), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("granitemoehybrid", {"layer_types": ["mamba", "mamba"]}),
        ("qwen3_next", {"layer_types": ["linear_attention", "linear_attention"]}),
        ("lfm2", {"layer_types": ["conv", "conv"]}),
        ("minimax", {"layer_types": ["linear_attention", "linear_attention"]}),
        ("minimax", {"layer_types": ["full_attention", "linear_attention"]}),
        ("bamba", {"attn_layer_indices": [0, 1]}),
        ("bamba", {"time_step_limit": (0.0, 0.02)}),
        ("mamba2", {"chunk_size": 100, "conv_kernel": 7}),
        ("mamba", {"conv_kernel": 2, "state_size": 1}),
    ],
)
@pytest.mark.parametrize("chunk_tokens", [1, 7])
def test_so_do_layers_of_one_kind_alone_and_other_widths(
    make: Any, tokens: Any, kind: str, changes: dict[str, Any], chunk_tokens: int
) -> None:
    model, ids = load(make(kind, **{**KINDS[kind][0], **changes})), tokens(24)
    found, state = in_pieces(model, ids, chunk_tokens)
    assert_equal(found, whole(model, ids))
    mark, token = model.mark(state), model.step(state, [5])
    model.rollback(state, mark)
    assert torch.equal(model.step(state, [5]), token)


@EVERY
def test_chunks_single_tokens_and_chunks_again(loaded: Any, tokens: Any, kind: str) -> None:
    model, ids = loaded(kind), tokens(60)
    # Mamba-2 with a limit on its step size has none for a single token: that is the model's own.
    pieces = [19, 2, 17, 3, 19] if continuation_of(model.hf, several=False).own_step else [19, 1, 2, 1, 17, 1, 19]
    state, found = model.prefill([]), []
    for piece in torch.tensor(ids).split(pieces):
        found.append(model.step(state, piece.tolist()))
    assert_equal(torch.cat(found), whole(model, ids))


@EVERY
def test_greedy_steps_give_the_tokens_that_generate_gives(loaded: Any, tokens: Any, kind: str) -> None:
    model, ids = loaded(kind), tokens(40)
    prompt, greedy = torch.tensor([ids]), {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    expected = model.hf.generate(prompt, attention_mask=mask, max_new_tokens=8, **greedy)[0, 40:].tolist()
    state, found = model.prefill(ids[:-1], chunk_tokens=16), ids[-1:]
    for _ in range(8):
        found.append(int(model.step(state, found[-1:])[-1].argmax()))
    assert found[1:] == expected


@EVERY
@pytest.mark.parametrize("num_prompt", [0, 23])
def test_rolled_back_it_is_bit_identical_to_never_having_gone_on(
    loaded: Any, tokens: Any, kind: str, num_prompt: int
) -> None:
    model, ids = loaded(kind), tokens(num_prompt)
    state, untouched = (model.prefill(ids, chunk_tokens=16) for _ in range(2))
    mark = model.mark(state)
    for surplus in (1, 9):
        model.step(state, tokens(surplus, seed=1))
        model.step(state, [5])
        model.rollback(state, mark)
        assert state.num_tokens == num_prompt
    for token in (7, 11):
        assert torch.equal(model.step(state, [token]), model.step(untouched, [token]))
    for one, other in zip(state.tensors(), untouched.tensors(), strict=True):
        assert torch.equal(one, other)


@FEW
def test_a_forward_that_failed_half_way_is_taken_back(loaded: Any, tokens: Any, kind: str) -> None:
    model, ids = loaded(kind), tokens(23)
    state, untouched = (model.prefill(ids, chunk_tokens=16) for _ in range(2))
    mark = model.mark(state)
    layers = next(each for each in model.hf.modules() if isinstance(each, nn.ModuleList))
    hook = layers[1].register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.step(state, tokens(9))
    hook.remove()
    model.rollback(state, mark)
    assert torch.equal(model.step(state, [7]), model.step(untouched, [7]))


@pytest.mark.parametrize("kind", ["mamba2", "rwkv", "xlstm"])
def test_a_mark_takes_the_same_room_at_any_length(loaded: Any, tokens: Any, kind: str) -> None:
    model = loaded(kind)
    short, long = (model.mark(model.prefill(tokens(length))).num_bytes for length in (5, 90))
    assert short == long > 0


def test_two_sequences_in_one_model_that_keeps_its_state_in_modules_do_not_meet(loaded: Any, tokens: Any) -> None:
    model, first, second = loaded("recurrent_gemma"), tokens(20), tokens(20, seed=1)
    one, other, found = model.prefill(first[:9]), model.prefill(second[:9]), []
    for at in range(9, 20):
        found.append((model.step(one, first[at : at + 1]), model.step(other, second[at : at + 1])))
    assert_equal(torch.cat([each for each, _ in found]), whole(model, first)[9:])
    assert_equal(torch.cat([each for _, each in found]), whole(model, second)[9:])
    assert model.hf.model.layers[0].temporal_block.conv1d_state is None


@pytest.mark.parametrize("kind", ["falcon_h1", "qwen3_next", "zamba2", "mamba2", "recurrent_gemma"])
def test_offloaded_it_is_bit_by_bit_the_same(
    loaded: Any, tokens: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_state, "_computes_on_host", lambda model: False)
    model, ids, found = loaded(kind), tokens(40), []
    for cache in ("device", "offload"):
        state = model.prefill(ids[:30], chunk_tokens=16, cache=cache)
        mark = model.mark(state)
        model.step(state, ids[30:35])
        model.rollback(state, mark)
        found.append(model.step(state, ids[30:]))
    assert torch.equal(*found)


def test_what_cannot_lie_on_the_host_is_refused_or_said(
    loaded: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_state, "_computes_on_host", lambda model: False)
    with pytest.raises(NotReproducible, match="MiniMaxForCausalLM: the cache that it makes itself cannot lie in the"):
        loaded("minimax").prefill([3, 4], cache="offload")
    with caplog.at_level(logging.INFO, "probe"):
        loaded("rwkv").prefill([3, 4], cache="offload")
    assert "RwkvForCausalLM: cache='offload' changes nothing: what it keeps does not grow" in caplog.text


class small_device:
    """Runs out of memory in the last layer where a piece has more tokens than there is room for, so many times."""

    def __init__(self, model: HuggingFaceModel, room: int, times: int = 10**9) -> None:
        layers = next(each for each in model.hf.modules() if isinstance(each, nn.ModuleList))
        self.room, self.times, self.refused = room, times, list[int]()
        self.hook = layers[-1].register_forward_pre_hook(self.refuse, with_kwargs=True)

    def refuse(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else next(iter(kwargs.values()))
        if hidden.shape[1] > self.room and len(self.refused) < self.times:
            self.refused.append(hidden.shape[1])
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@FEW
def test_a_chunk_without_room_is_halved(loaded: Any, tokens: Any, kind: str) -> None:
    model, ids = loaded(kind), tokens(200)
    expected = whole(model, ids)
    for several in (True, False):
        continuation_of(model.hf, several=several)
    device = small_device(model, 40)
    found, state = in_pieces(model, ids, 80)
    assert device.refused == [80]
    device.hook.remove()
    assert_equal(found, expected)
    assert_equal(model.step(state, [7]), whole(model, [*ids, 7])[-1:])


@pytest.fixture(name="unrepaired")
def _unrepaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers as it is."""
    monkeypatch.setattr(continuation, "_REPAIRS", ())


@pytest.mark.usefixtures("unrepaired")
def test_where_only_single_tokens_go_on_rightly_they_go_one_by_one(loaded: Any, tokens: Any, caplog: Any) -> None:
    model, ids = loaded("jamba"), tokens(30)
    with caplog.at_level(logging.WARNING, "probe"):
        found, state = in_pieces(model, ids, 16)
    assert_equal(found, whole(model, ids))
    assert state.prompt == "16 tokens at once, then token by token, since several at once lose what the model keeps"
    said = [each.getMessage() for each in caplog.records if each.name == "probe"]
    assert len(said) == 1
    assert "after 16 tokens the prompt goes through token by token: no more memory, a forward for each" in said[0]
    with pytest.raises(NotReproducible, match="several tokens put through on its cache give other logits"):
        model.step(state, [3, 4])


@pytest.mark.usefixtures("unrepaired")
def test_where_nothing_goes_on_rightly_the_prompt_goes_in_at_once(loaded: Any, tokens: Any, caplog: Any) -> None:
    model, ids = loaded("bamba"), tokens(30)
    with caplog.at_level(logging.WARNING, "probe"):
        found, state = in_pieces(model, ids, 16)
    assert_equal(found, whole(model, ids))
    assert state.prompt == "whole, 30 tokens at once, since the model does not go on from what it keeps"
    assert "all 30 tokens of the prompt go through at once, not 16: the activations of all are held" in caplog.text
    with pytest.raises(NotReproducible, match=r"BambaForCausalLM: a token put through on its cache .* nothing can"):
        model.step(state, [3])
    device = small_device(model, 20)
    with pytest.raises(DeviceTooSmall, match=r"a chunk of 30 tokens .*\(BambaForCausalLM does not go on from what it"):
        in_pieces(model, ids, 16)
    device.hook.remove()


@pytest.mark.parametrize("kind", ["nemotron_h", "zamba2"])
def test_a_single_token_that_a_model_computes_otherwise_by_design_is_its_own(
    loaded: Any, tokens: Any, caplog: Any, kind: str
) -> None:
    model, ids = loaded(kind), tokens(65)
    with torch.no_grad():
        for module in model.hf.modules():
            if hasattr(module, "dt_bias"):
                # A step size below the limit of 0.001, which only several tokens at once have.
                module.dt_bias.fill_(-8.0)
                module.A_log.fill_(6.0)
    with caplog.at_level(logging.WARNING, "probe"):
        found, state = in_pieces(model, ids, 16)
        model.step(state, [3])
    # In chunks of 16 the last would be a single token.
    assert_equal(found, whole(model, ids))
    assert continuation_of(model.hf, several=False).own_step
    assert len([each for each in caplog.records if "does not limit the step size" in each.getMessage()]) == 1

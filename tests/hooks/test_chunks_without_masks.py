"""A prompt in chunks is the prompt in one forward, and no mask of chunk × cached keys is made for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.masking_utils import sdpa_mask

from probe.errors import NotReproducible
from probe.hooks.attention import chunk as chunk_attention
from probe.hooks.attention import interface as attention_interface
from probe.hooks.attention import prompt_chunk
from probe.hooks.models.huggingface import HuggingFaceModel, load
from probe.kernels.call import Call
from probe.kernels.scan import Scan

STATISTICS = ["log_sum_exp", "entropy", "max_probability", "received_mass", "mean_distance", "key_norm"]
PLAIN = ["llama", "llama-gqa", "llama-mqa", "gpt2", "gpt-neox", "olmo2", "deepseek-v3-value-width"]
OTHER = ["qwen3-sliding-full", "mistral-window", "gemma3", "phi3", "gemma2-softcap", "gpt-oss-sinks"]
MORE = ["granite", "cohere", "starcoder2", "stablelm", "opt"]


def read(model: HuggingFaceModel, prompt: list[int], chunk_tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits at every token, and the statistics of every layer."""
    scans: dict[int, Scan] = {}
    logits: list[Tensor] = []

    def on_call(sample: int, call: Call) -> None:
        scans.setdefault(call.layer, Scan(STATISTICS)).update(call)

    with model.calls(on_call):
        model.prefill(prompt, chunk_tokens=chunk_tokens, on_logits=lambda start, rows: logits.append(rows))
    found = {
        f"{name} of layer {layer}": result.values for layer in scans for name, result in scans[layer].finish().items()
    }
    return torch.cat(logits), found


@pytest.mark.parametrize("kind", [*PLAIN, *OTHER, *MORE])
@pytest.mark.parametrize(("num_tokens", "chunk_tokens"), [(40, 1), (150, 15), (150, 64), (150, 129)])
def test_logits_and_statistics_are_those_of_one_forward(
    make: Any, tokens: Any, kind: str, num_tokens: int, chunk_tokens: int
) -> None:
    model, prompt = load(make(kind)), tokens(num_tokens)
    with torch.no_grad():
        expected = model.hf(input_ids=prompt[None]).logits[0]
        # What rounding does to this model, seen in the whole forward, is what chunks may do to it. Experts do not run
        # in float64.
        exact = expected if "oss" in kind else copy.deepcopy(model.hf).double()(input_ids=prompt[None]).logits[0]
    logits, found = read(model, prompt.tolist(), chunk_tokens)
    allowed = max(1e-5 * float(expected.abs().max()), 4 * float((expected - exact).abs().max()))
    torch.testing.assert_close(logits.to(exact), exact, rtol=0, atol=allowed)
    for name, whole in read(model, prompt.tolist(), num_tokens)[1].items():
        torch.testing.assert_close(
            found[name], whole, rtol=1e-4, atol=2e-4, msg=lambda said, name=name: f"{name} {said}"
        )


def test_nobody_watching_changes_nothing(make: Any, tokens: Any) -> None:
    model, prompt = load(make("llama-gqa")), tokens(60).tolist()
    watched = read(model, prompt, 16)[0]
    logits: list[Tensor] = []
    model.prefill(prompt, chunk_tokens=16, on_logits=lambda start, rows: logits.append(rows))
    assert torch.equal(torch.cat(logits), watched)
    assert model.hf.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


class Masks(TorchDispatchMode):
    """Remembers the shapes of what has the form of a mask: rows of a chunk against the keys before it and its own."""

    def __init__(self, chunk_tokens: int, heads: int) -> None:
        super().__init__()
        self.chunk_tokens, self.heads = chunk_tokens, heads
        self.seen: set[tuple[int, ...]] = set()
        self.expanded: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.ndim >= 2 and each.shape[-2] == self.chunk_tokens < each.shape[-1]:
                self.seen.add(tuple(each.shape))
            is_heads = isinstance(each, Tensor) and each.ndim == 4 and each.shape[1] == self.heads
            if is_heads and each.shape[2] > self.chunk_tokens:
                self.expanded.add(tuple(each.shape))
        return result


@pytest.mark.parametrize("kind", ["llama-gqa", "llama-mqa", "gpt-neox", "gpt2", "granite"])
@pytest.mark.parametrize("watched", [False, True])
def test_no_mask_is_made_and_no_key_repeated(make: Any, tokens: Any, kind: str, watched: bool) -> None:
    # 97 is no other size in these models.
    model, prompt = load(make(kind, "sdpa")), tokens(485).tolist()
    model.attention_layers  # noqa: B018
    with Masks(97, 4) as masks:
        if watched:
            with model.calls(lambda sample, call: None):
                model.prefill(prompt, chunk_tokens=97)
        else:
            model.prefill(prompt, chunk_tokens=97)
    # What attends to a vocabulary's or a layer's width is no mask.
    assert {shape for shape in masks.seen if shape[-1] % 97 == 0} == set()
    if kind in ("llama-gqa", "llama-mqa", "granite"):
        assert masks.expanded == set()


@pytest.mark.parametrize("chunk_tokens", [16, 31])
def test_a_window_keeps_its_mask_of_chunk_and_window(make: Any, tokens: Any, chunk_tokens: int) -> None:
    model = load(make("mistral-window", "sdpa"))
    model.attention_layers  # noqa: B018
    with Masks(chunk_tokens, 4) as masks:
        model.prefill(tokens(310).tolist(), chunk_tokens=chunk_tokens)
    widths = {shape[-1] for shape in masks.seen if len(shape) == 4 and shape[1] == 1}
    assert widths == {chunk_tokens + 6}


@pytest.mark.parametrize(
    "option", [{"softcap": 2.0}, {"dropout": 0.1}, {"sliding_window": 100}, {"s_aux": torch.ones(4)}]
)
def test_what_the_parts_do_not_know_gets_the_model_s_own_mask(option: dict[str, Any]) -> None:
    """`own` is what the model would have been called with, were there no chunk."""
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 12, 8)
    given: list[Any] = []

    def own(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        given.append(mask)
        return query.transpose(1, 2), None

    arguments = {
        "batch_size": 1, "q_length": 5, "kv_length": 12, "q_offset": 7, "kv_offset": 0, "attention_mask": None,
        "mask_function": prompt_chunk.causal_mask_function, "allow_is_causal_skip": True,
    }  # fmt: skip
    chunk = prompt_chunk.prompt_chunk(7, 5)
    with prompt_chunk.without_plain_masks(chunk):
        assert prompt_chunk.plain_masks_left_out(sdpa_mask)(**arguments) is None
        function = attention_interface.own_attention(own, type("config", (), {"_attn_implementation": "sdpa"})())
        options: dict[str, Any] = {"causal": True, "observed": False}
        chunk_attention.attend(function, torch.nn.Module(), query, key, key, None, option, **options)
    seen = torch.arange(12)[None] <= torch.arange(7, 12)[:, None]
    assert torch.equal(given[0][0, 0], seen)


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": 2},
        {"q_length": 4},
        {"kv_length": 11},
        {"q_offset": 0},
        {"kv_offset": 1},
        {"attention_mask": torch.ones(1, 12, dtype=torch.bool)},
        {"allow_is_causal_skip": False},
        {"mask_function": lambda b, h, q, k: k <= q},
        {"local_size": 4},
    ],
)
def test_only_the_plain_causal_mask_of_the_chunk_is_left_out(changed: dict[str, Any]) -> None:
    asked: list[Any] = []
    arguments = {
        "batch_size": 1, "q_length": 5, "kv_length": 12, "q_offset": 7, "kv_offset": 0, "attention_mask": None,
        "mask_function": prompt_chunk.causal_mask_function, "allow_is_causal_skip": True,
    }  # fmt: skip
    own = prompt_chunk.plain_masks_left_out(lambda **given: asked.append(given))
    with prompt_chunk.without_plain_masks(prompt_chunk.prompt_chunk(7, 5)):
        own(**arguments)
        assert asked == []
        own(**{**arguments, **changed})
    assert len(asked) == 1
    own(**arguments)
    assert len(asked) == 2


def test_a_chunk_that_is_attended_to_wrongly_is_refused(
    make: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def aligned_at_the_first_key(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True, scale=scale)
        return found[0], found[1]

    model = load(make("llama-gqa", "sdpa"))
    model.attention_layers  # noqa: B018
    monkeypatch.setattr(chunk_attention, "flash_attention_after_past", aligned_at_the_first_key)
    with (
        model.calls(lambda sample, call: None),
        pytest.raises(NotReproducible, match="LlamaForCausalLM, layer 0: the attention output cannot be reproduced"),
    ):
        model.prefill(tokens(60).tolist(), chunk_tokens=20)


def test_provenance_says_how_chunks_attend(make: Any) -> None:
    assert "merged by log-sum-exp" in load(make("llama", "sdpa")).provenance()["attention_in_chunks"]
    assert load(make("llama", "eager")).provenance()["attention_in_chunks"] == "the model's own, with its mask"

"""Logits come a few tokens at a time, as the model's own head makes them, and no whole chunk's are ever held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from probe.errors import NotReproducible
from probe.hooks.models.huggingface import load
from probe.hooks.sequence import logit_slices as module
from probe.hooks.sequence.logit_slices import can_slice_logits

WIDTH = 509
KINDS: dict[str, dict[str, Any]] = {
    "llama-gqa": {},
    "gpt2": {},
    "gpt-neox": {},
    "gemma2-softcap": {"final_logit_softcapping": 0.5},
    "gemma3": {"final_logit_softcapping": 0.5},
    "granite": {"logits_scaling": 7.0},
    "cohere": {"logit_scale": 0.3},
    "gpt-oss-sinks": {},
    "deepseek-v3-value-width": {},
}


class Logits(TorchDispatchMode):
    """Remembers the most rows that anything of the vocabulary's width had."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            # The weights have a row for each token of the vocabulary, and are transposed to be multiplied by.
            if isinstance(each, Tensor) and each.shape[-1:] == (WIDTH,) and each.shape != (32, WIDTH):
                self.rows = max(self.rows, each.numel() // WIDTH)
        return result


def model_of(make: Any, kind: str) -> Any:
    return load(make(kind, vocab_size=WIDTH, max_position_embeddings=1024, **KINDS[kind]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_tokens", [600, 300, 257])
def test_slices_are_the_whole_models_logits_and_no_more_are_held(
    make: Any, tokens: Any, kind: str, chunk_tokens: int
) -> None:
    model, prompt = model_of(make, kind), tokens(600)
    with torch.no_grad():
        expected = model.hf(input_ids=prompt[None]).logits[0]
    assert can_slice_logits(model.hf)
    found: list[tuple[int, Tensor]] = []
    with Logits() as made:
        model.prefill(
            prompt.tolist(), chunk_tokens=chunk_tokens, on_logits=lambda at, rows: found.append((at, rows.clone()))
        )
    assert made.rows == 256
    assert [at for at, _ in found] == [
        at for start in range(0, 600, chunk_tokens) for at in range(start, min(start + chunk_tokens, 600), 256)
    ]
    logits = torch.cat([rows for _, rows in found])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2", "gemma3"])
def test_nobody_asking_for_logits_makes_one_row(make: Any, tokens: Any, kind: str) -> None:
    model = model_of(make, kind)
    model.prefill([3, 4])
    with Logits() as made:
        model.prefill(tokens(600).tolist(), chunk_tokens=600)
    assert made.rows == 1


def test_the_model_is_as_before_even_when_a_reader_raises(make: Any, tokens: Any) -> None:
    model, prompt = model_of(make, "llama-gqa"), tokens(1, 40)
    with torch.no_grad():
        before = model.hf(input_ids=prompt).logits
    with pytest.raises(ZeroDivisionError):
        model.prefill(prompt[0].tolist(), on_logits=lambda at, rows: 1 / 0)
    assert "forward" not in vars(model.hf.base_model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    with torch.no_grad():
        assert torch.equal(model.hf(input_ids=prompt).logits, before)


def test_slices_are_nobodys_forward_to_watch(make: Any, tokens: Any, attention: Any) -> None:
    model = model_of(make, "llama-gqa")
    residuals: list[int] = []
    with model.calls(attention, lambda layer, sample, hidden: residuals.append(len(hidden))):
        model.prefill(tokens(600).tolist(), chunk_tokens=300, on_logits=lambda at, rows: None)
    assert [call.num_queries for _, call in attention.calls] == residuals == [300] * 4


def test_a_head_that_mixes_tokens_is_not_sliced(make: Any, tokens: Any) -> None:
    model = model_of(make, "llama-gqa")
    own = model.hf.lm_head.forward
    model.hf.lm_head.forward = lambda hidden: own(hidden.cumsum(dim=1))
    prompt = tokens(600)
    with torch.no_grad():
        expected = model.hf(input_ids=prompt[None]).logits[0]
    assert not can_slice_logits(model.hf)
    found: list[Tensor] = []
    model.prefill(prompt.tolist(), chunk_tokens=600, on_logits=lambda at, rows: found.append(rows))
    assert [len(each) for each in found] == [256, 256, 88]
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


def test_a_head_that_turns_out_to_mix_tokens_is_refused(make: Any, tokens: Any) -> None:
    model = model_of(make, "llama-gqa")
    assert can_slice_logits(model.hf)
    own = model.hf.lm_head.forward
    model.hf.lm_head.forward = lambda hidden: own(hidden.cumsum(dim=1))
    with pytest.raises(NotReproducible, match="its logits at a token depend on the tokens"):
        model.prefill(tokens(100).tolist(), on_logits=lambda at, rows: None)


def test_half_precision_is_sliced_too(make: Any, tokens: Any) -> None:
    hf = make("llama-gqa", vocab_size=WIDTH, max_position_embeddings=1024).to(torch.bfloat16)
    assert can_slice_logits(hf)
    load(hf).prefill(tokens(600).tolist(), on_logits=lambda at, rows: None)


def test_it_is_tried_once_a_model(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hf, tried = make("llama-gqa"), []
    monkeypatch.setattr(module, "_agrees", lambda model: not tried.append(model))
    assert can_slice_logits(hf)
    assert can_slice_logits(hf)
    assert tried == [hf]

"""Nothing of n × n size is allocated while calls are handed out, nor by an ablation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from probe.hooks.ablate_heads import ablate_heads
from probe.hooks.models.huggingface import load
from probe.hooks.sequence import decoding_state

NUM_TOKENS = 4096


class Largest(TorchDispatchMode):
    """Remembers the largest tensor, in elements, that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.where = 0, ""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.numel() > self.elements:
                self.elements, self.where = each.numel(), str(function)
        return result


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("ablated", [False, True])
def test_a_whole_prompt_is_watched_in_linear_memory(make: Any, tokens: Any, kind: str, ablated: bool) -> None:
    model, prompt = load(make(kind, "sdpa", max_position_embeddings=NUM_TOKENS)), tokens(1, NUM_TOKENS)
    seen: list[int] = []
    with Largest() as unwatched, torch.no_grad():
        model.hf(input_ids=prompt)
    with Largest() as watched, torch.no_grad(), model.calls(lambda sample, call: seen.append(call.num_queries)):
        if ablated:
            with ablate_heads([(0, 1)], "uniform")(model):
                model.hf(input_ids=prompt)
        else:
            model.hf(input_ids=prompt)
    assert sum(seen) == 2 * NUM_TOKENS
    # Four recomputed rows of two heads at most, beside what the model itself allocates.
    assert watched.elements <= max(unwatched.elements, 4 * 4 * NUM_TOKENS), watched.where
    assert watched.elements < NUM_TOKENS * NUM_TOKENS / 16


@pytest.mark.parametrize("cache", ["device", "offload"])
def test_a_prompt_in_chunks_allocates_no_more_than_its_cache(
    make: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch, cache: Any
) -> None:
    model = load(make("llama-gqa", "sdpa", max_position_embeddings=NUM_TOKENS))
    monkeypatch.setattr(decoding_state, "_computes_on_host", lambda model: False)
    with Largest() as watched, model.calls(lambda sample, call: None):
        model.prefill(tokens(NUM_TOKENS).tolist(), chunk_tokens=256, on_logits=lambda start, logits: None, cache=cache)
    # Four rows of a group of two heads are recomputed; two heads of eight channels are cached.
    assert watched.elements <= 1.5 * 2 * 8 * NUM_TOKENS, watched.where

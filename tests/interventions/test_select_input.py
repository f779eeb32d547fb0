"""GemFilter against a dense float64 choice, and what becomes of the sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import probe
from probe.errors import UsageError
from probe.hooks.attention.switch import watchers
from probe.hooks.intervention import Intervention
from probe.hooks.select_input import select_input
from probe.sample import Sample, Span
from tests.interventions.dense_model import MODELS, dense_logits, llama, plain, tokens


def dense_choice(model: Any, ids: list[int], asked: select_input) -> list[int]:
    found: dict[int, Tensor] = {}

    def seeing(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        found[layer] = torch.stack([query[head, -1] @ key[head].T for head in range(len(query))]).sum(0)
        return plain(layer, query, key, value, scale)

    dense_logits(model, ids, seeing)
    scores = found[asked.layer].numpy()
    padded = np.pad(scores, asked.kernel // 2)
    pooled = [padded[at : at + asked.kernel].mean() for at in range(len(ids))]
    return sorted(sorted(range(len(ids)), key=lambda at: -pooled[at])[: asked.budget])


def sample(ids: list[int]) -> Sample:
    spans = (Span("needle", 10, 16), Span("question", len(ids) - 8, len(ids)), Span("document_0", 0, 20))
    return Sample("s", tuple(ids), spans, answer_tokens=(3, 4), text="words", facts={"length": len(ids)})


@pytest.mark.parametrize("asked", [select_input(1, 20), select_input(0, 7, kernel=1), select_input(1, 50, kernel=9)])
@pytest.mark.parametrize("architecture", MODELS)
def test_what_is_read_is_what_the_definition_chooses(architecture: str, asked: select_input) -> None:
    model, ids = MODELS[architecture](), tokens(90)
    kept = dense_choice(model, ids, asked)
    with asked(model):
        read = probe.trace(model, sample(ids), statistics=["entropy"], check=False)
    assert list(read.sample.tokens) == [ids[at] for at in kept]
    alone = probe.trace(model, [ids[at] for at in kept], statistics=["entropy"], max_new_tokens=2, check=False)
    np.testing.assert_allclose(read["entropy"], alone["entropy"], rtol=1e-5, atol=1e-6)
    facts = read.sample.facts["select_input"]
    assert facts["tokens_read"] == asked.budget
    assert facts["tokens"] == 90
    for span in sample(ids).spans:
        inside = [at for at in kept if span.start <= at < span.stop]
        assert facts["kept_of_span"][span.name] == len(inside) / len(span)
        if inside:
            moved = read.sample.span(span.name)
            assert [kept[at] for at in range(moved.start, moved.stop)] == inside
        else:
            assert span.name not in {each.name for each in read.sample.spans}


def test_chunks_choose_what_the_whole_chooses() -> None:
    model, ids = llama(), tokens(90)
    whole, cut = (select_input(1, 20, chunk_tokens=size).rewritten(model, sample(ids)) for size in (2048, 16))
    assert whole.tokens == cut.tokens


def test_a_budget_of_the_whole_prompt_is_the_model() -> None:
    model, given = llama(), sample(tokens(60))
    assert select_input(1, 60).rewritten(model, given) is given


def test_the_last_tokens_can_be_kept() -> None:
    model, given = llama(), sample(tokens(60))
    kept = select_input(1, 9, keep_last=4).rewritten(model, given)
    assert kept.tokens[-4:] == given.tokens[-4:]
    assert len(kept) == 9


def test_after_an_error_samples_are_read_as_they_are() -> None:
    model, given = llama(), sample(tokens(60))
    with pytest.raises(RuntimeError, match="in the body"), select_input(1, 9)(model):
        raise RuntimeError("in the body")
    assert watchers(model) == 0
    assert probe.trace(model, given, statistics=["entropy"], check=False).sample.tokens == given.tokens


def test_it_comes_back_from_json() -> None:
    asked = select_input(1, 20, keep_last=2)
    assert Intervention.from_json(asked.to_json()) == asked


@pytest.mark.parametrize(("fields", "named"), [
    ({"layer": -1, "budget": 4}, "layer"), ({"layer": 0, "budget": 0}, "budget"),
    ({"layer": 0, "budget": 4, "kernel": 4}, "kernel"), ({"layer": 0, "budget": 4, "keep_last": 5}, "keep_last"),
])  # fmt: skip
def test_fields_that_cannot_be(fields: dict[str, int], named: str) -> None:
    with pytest.raises(UsageError, match=f"select_input: {named}"):
        select_input(**fields)


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="layer 7"), select_input(7, 4)(llama()):
        pass


def test_a_layer_that_sees_a_window_cannot_choose() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=61, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=8, use_sliding_window=True,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with pytest.raises(UsageError, match="layer 0 sees 8 tokens"):
        select_input(0, 10).rewritten(model, sample(tokens(40)))
    assert len(select_input(1, 10).rewritten(model, sample(tokens(40)))) == 10

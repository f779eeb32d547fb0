"""Changes of calls where a model does more than attend to one prompt: padding, generation, windows, own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPTJConfig, GPTJForCausalLM, MistralConfig, MistralForCausalLM

import probe
from probe.errors import UsageError
from probe.hooks.limit_distance import limit_distance
from tests.interventions.definitions.limit_distance import definition
from tests.interventions.dense_model import (
    MODELS,
    causal,
    dense_logits,
    inverse_frequencies,
    llama,
    tokens,
    turned,
    unturned,
)

SHAPE = limit_distance(8, num_first=3)


def gptj() -> Any:
    """Attends in a module of its own, neighbouring channels turning together, a part of them alone."""
    torch.manual_seed(4)
    config = GPTJConfig(vocab_size=61, n_embd=48, n_layer=2, n_head=3, rotary_dim=8, n_positions=256)
    return GPTJForCausalLM(config).eval()


def mistral() -> Any:
    """A sliding window of 24 tokens."""
    torch.manual_seed(5)
    config = MistralConfig(
        vocab_size=61, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, sliding_window=24,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


def logits(model: Any, ids: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(ids), **options).logits


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(90, 33), (20, 7)])
def test_padding_changes_nothing(side: str, lengths: tuple[int, ...]) -> None:
    model, longest = llama(), max(lengths)
    prompts = [tokens(length, seed=length) for length in lengths]
    with SHAPE(model):
        alone = [logits(model, [ids])[0] for ids in prompts]
    fill = [[0] * (longest - len(ids)) for ids in prompts]
    rows = [f + ids if side == "left" else ids + f for f, ids in zip(fill, prompts, strict=True)]
    zeros_and_ones = [[0] * len(f) + [1] * len(ids) for f, ids in zip(fill, prompts, strict=True)]
    mask = torch.tensor(zeros_and_ones if side == "left" else [row[::-1] for row in zeros_and_ones])
    position = (mask.cumsum(1) - 1).clamp(min=0)
    with SHAPE(model):
        together = logits(model, rows, attention_mask=mask, position_ids=position)
    for row, kept, expected in zip(together, mask, alone, strict=True):
        torch.testing.assert_close(row[kept.bool()], expected, rtol=1e-5, atol=1e-5)


def test_it_holds_through_generation() -> None:
    model, ids = llama(), tokens(40)
    with SHAPE(model):
        made = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0].tolist()
    for stop in range(40, 52):
        assert int(dense_logits(model, made[:stop], definition(SHAPE, model))[-1].argmax()) == made[stop]


def test_a_window_stays_a_window() -> None:
    """Beyond the model's own window nothing is seen, the first tokens included."""
    model, ids = mistral(), tokens(90)
    with limit_distance(1000)(model):
        torch.testing.assert_close(logits(model, [ids]), logits(mistral(), [ids]))
    narrower = mistral()
    narrower.config.sliding_window = 8
    for layer in narrower.model.layers:
        layer.self_attn.sliding_window = 8
    expected = logits(narrower, [ids])
    # Positions 0 to 2 are in nobody's window from position 27 on, and every query's first tokens before.
    with limit_distance(8, num_first=0, limit=None)(model):
        torch.testing.assert_close(logits(model, [ids]), expected, rtol=1e-5, atol=1e-5)


def test_a_model_that_attends_in_its_own_module() -> None:
    model, ids = gptj(), tokens(60)
    before = logits(model, [ids])
    with limit_distance(1000)(model):
        torch.testing.assert_close(logits(model, [ids]), before)
    with limit_distance(8, num_first=3)(model):
        changed = logits(model, [ids])
        pieces = probe.load(model)
        cut = pieces.step(pieces.prefill(ids[:-1], chunk_tokens=17), ids[-1:])
    torch.testing.assert_close(cut[-1], changed[0, -1], rtol=1e-5, atol=1e-5)
    assert (changed - before).abs().max() > 1e-3
    assert torch.equal(logits(model, [ids]), before)


def test_where_it_acts_adds_up() -> None:
    """In every layer one after the other it does what it does in all at once, and so by heads."""
    model, ids = llama(), tokens(80)
    with SHAPE(model):
        whole = logits(model, [ids])
    with limit_distance(8, num_first=3, layers=[0])(model), limit_distance(8, num_first=3, layers=[1, 2])(model):
        torch.testing.assert_close(logits(model, [ids]), whole, rtol=1e-5, atol=1e-5)
    even = [(layer, head) for layer in range(3) for head in (0, 2)]
    odd = [(layer, head) for layer in range(3) for head in (1, 3)]
    with limit_distance(8, num_first=3, heads=even)(model), limit_distance(8, num_first=3, heads=odd)(model):
        torch.testing.assert_close(logits(model, [ids]), whole, rtol=1e-5, atol=1e-5)
    with (
        limit_distance(8, num_first=3, queries=(0, 50))(model),
        limit_distance(8, num_first=3, queries=(50, 80))(model),
    ):
        torch.testing.assert_close(logits(model, [ids]), whole, rtol=1e-5, atol=1e-5)
    with limit_distance(8, num_first=3, phase="prefill")(model), limit_distance(8, num_first=3, phase="decode")(model):
        torch.testing.assert_close(logits(model, [ids]), whole, rtol=1e-5, atol=1e-5)


def test_what_nothing_acts_on_stays_as_it_is() -> None:
    model, ids = llama(), tokens(80)
    before = logits(model, [ids])
    with limit_distance(8, num_first=3, queries=(0, 79))(model):
        changed = logits(model, [ids])
    assert not torch.equal(changed, before)
    with limit_distance(8, num_first=3, queries=(80, 90))(model):
        assert torch.equal(logits(model, [ids]), before)
    with limit_distance(8, num_first=3, phase="decode")(model):
        torch.testing.assert_close(logits(model, [ids])[:, :-1], before[:, :-1])


def test_a_softcap_is_on_what_is_far_as_on_what_is_near() -> None:
    torch.manual_seed(6)
    config = Gemma2Config(
        vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, layer_types=["full_attention"] * 2,
        attn_logit_softcapping=2.0, initializer_range=0.2,
    )  # fmt: skip
    model, ids = Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval(), tokens(60)

    def capped(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        position = torch.arange(query.shape[1])
        distance = position[:, None] - position
        at = position.clamp(max=SHAPE.window).double()
        far = turned(unturned(model, query), at[:, None] * inverse_frequencies(model))
        near, far = (2 * torch.tanh(each @ key.transpose(1, 2) * scale / 2) for each in (query, far))
        shaped = torch.where(distance < SHAPE.window, near, far)
        hidden = (distance >= SHAPE.window) & (position >= SHAPE.num_first)
        return causal(shaped.masked_fill(hidden, -torch.inf)).softmax(-1) @ value

    expected = dense_logits(model, ids, capped)
    with SHAPE(model):
        changed = logits(model, [ids])[0].double()
    torch.testing.assert_close(changed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_full(dtype: torch.dtype) -> None:
    model, ids = llama(), tokens(100)
    with SHAPE(model):
        expected = logits(model, [ids])
    half = llama().to(dtype)
    with SHAPE(half):
        changed = logits(half, [ids])
    assert changed.dtype == dtype
    plain = (logits(llama().to(dtype), [ids]).float() - logits(model, [ids])).abs().max()
    assert (changed.float() - expected).abs().max() < 3 * plain


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layers": [7]}, "no attention in layer 7"),
        ({"heads": [(0, 9)]}, r"no head \(0, 9\)"),
        ({"layers": [0], "heads": [(0, 1)]}, "layers and heads"),
        ({"queries": (5, 5)}, "queries is a range"),
        ({"phase": "sometimes"}, "phase is 'sometimes'"),
    ],
)
def test_a_place_that_is_not_there_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said), limit_distance(8, **fields)(llama()):
        pass


def test_a_model_without_rotary_positions_is_refused_a_limit_and_takes_the_mask() -> None:
    model = MODELS["gpt2"]()
    with pytest.raises(UsageError, match="no rotary positions"), limit_distance(8)(model):
        pass
    with limit_distance(8, limit=None)(model):
        logits(model, [tokens(30)])

"""Channels of the residual stream that are set, against a float64 model cut in two after the layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import probe
from probe.errors import UsageError
from probe.hooks.intervention import Intervention
from probe.hooks.set_activations import set_activations
from probe.sample import Sample
from tests.interventions.dense_model import VOCABULARY, tokens

MASSIVE, CHANNEL = 7, 5
"""The token whose embedding towers, and where."""


def planted() -> Any:
    """A Llama in which the token `MASSIVE` has one channel of 700 from its embedding on."""
    torch.manual_seed(6)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.15,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[MASSIVE, CHANNEL] = 700.0
    return model


PROMPT = [3 if token == MASSIVE else token for token in tokens(30)]
PROMPT[0] = PROMPT[12] = MASSIVE


@torch.no_grad()
def cut_in_two(model: Any, layer: int, change: Any, ids: list[int] = PROMPT) -> Tensor:
    """Logits in float64, the residual stream changed after the layer: two models, one after the other."""
    first = copy.deepcopy(model).double()
    second = copy.deepcopy(first)
    first.model.layers = first.model.layers[: layer + 1]
    first.model.norm = torch.nn.Identity()
    second.model.layers = second.model.layers[layer + 1 :]
    hidden = first.model(torch.tensor([ids])).last_hidden_state
    change(hidden[0])
    return second(inputs_embeds=hidden).logits[0]


@torch.no_grad()
def logits(model: Any, ids: list[int] = PROMPT) -> Tensor:
    return model(torch.tensor([ids])).logits[0]


def stream(model: Any, layer: int, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return (
            copy.deepcopy(model)
            .double()
            .model(torch.tensor([ids]), output_hidden_states=True)
            .hidden_states[layer + 1][0]
        )


CASES: dict[str, tuple[set_activations, Any]] = {
    "zero at the first token": (set_activations(0, [CHANNEL, 9]), {0: [0.0, 0.0]}),
    "zero wherever massive": (set_activations(1, [CHANNEL], positions="massive"), {0: [0.0], 12: [0.0]}),
    "later ones alone": (set_activations(0, [CHANNEL, 2], positions="later"), {12: [0.0, 0.0]}),
    "given numbers": (set_activations(1, [CHANNEL, 2], [3.0, -4.0], [4, 20]), {4: [3.0, -4.0], 20: [3.0, -4.0]}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_model_cut_in_two(case: str) -> None:
    asked, wanted = CASES[case]
    model, channels = planted(), list(asked.channels)

    def change(hidden: Tensor) -> None:
        for position, numbers in wanted.items():
            hidden[position, channels] = torch.tensor(numbers, dtype=torch.float64)

    expected = cut_in_two(model, asked.layer, change)
    before, state = logits(model), {name: each.clone() for name, each in model.state_dict().items()}
    with asked(model):
        changed = logits(model)
    torch.testing.assert_close(changed.double(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed, before, atol=1e-3)
    assert torch.equal(logits(model), before)
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_mean_is_that_of_each_kind_of_token() -> None:
    """Those at the beginning of texts apart from those within."""
    model = planted()
    texts = [[MASSIVE, 1, 2, MASSIVE, 4], [MASSIVE, 8, 9], [11, MASSIVE, 12, 13, 14, MASSIVE]]
    first = [stream(model, 1, text)[0, CHANNEL] for text in texts[:2]]
    later = [
        stream(model, 1, text)[at, CHANNEL] for text, at in zip((texts[0], texts[2], texts[2]), (3, 1, 5), strict=True)
    ]

    def change(hidden: Tensor) -> None:
        hidden[0, CHANNEL], hidden[12, CHANNEL] = torch.stack(first).mean(), torch.stack(later).mean()

    expected = cut_in_two(model, 1, change)
    with set_activations(1, [CHANNEL], "mean", "massive", reference=texts)(model):
        torch.testing.assert_close(logits(model).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_mean_at_a_listed_position_is_of_the_texts_that_have_it() -> None:
    model = planted()
    texts = [tokens(9, 3), tokens(3, 4), tokens(7, 5)]
    mean = torch.stack([stream(model, 0, text)[5, [1, 2]] for text in (texts[0], texts[2])]).mean(0)

    def change(hidden: Tensor) -> None:
        hidden[5, [1, 2]] = mean

    expected = cut_in_two(model, 0, change)
    with set_activations(0, [1, 2], "mean", [5], reference=texts)(model):
        torch.testing.assert_close(logits(model).double(), expected, rtol=1e-5, atol=1e-5)


def test_setting_to_what_is_there_changes_nothing() -> None:
    model = planted()
    own = stream(model, 1, PROMPT)[0, [CHANNEL, 3]].tolist()
    before = logits(model)
    with set_activations(1, [CHANNEL, 3], own)(model):
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


def test_chunks_and_decoding_know_positions() -> None:
    model = planted()
    pieces = probe.load(model)
    with set_activations(0, [CHANNEL, 2], positions=[3, 12, len(PROMPT) - 1])(model):
        whole = logits(model)[-1]
        cut = pieces.step(pieces.prefill(PROMPT[:-1], chunk_tokens=5), PROMPT[-1:])
        torch.testing.assert_close(cut.flatten(), whole, rtol=1e-5, atol=1e-5)


def test_padding_on_either_side_moves_no_position() -> None:
    model = planted()
    asked = set_activations(0, [CHANNEL, 2], positions=[2])
    for side in ("left", "right"):
        short, pad = PROMPT[:20], len(PROMPT) - 20
        row, mask = (short + [0] * pad, [1] * 20 + [0] * pad)
        if side == "left":
            row, mask = row[20:] + row[:20], mask[20:] + mask[:20]
        with torch.no_grad(), asked(model):
            expected = model(torch.tensor([short])).logits[0, -1]
            batch = model(torch.tensor([PROMPT, row]), attention_mask=torch.tensor([[1] * len(PROMPT), mask])).logits
        torch.testing.assert_close(batch[1, 19 if side == "right" else -1], expected, rtol=1e-5, atol=1e-5)


def test_those_entered_later_act_on_what_is_left_and_readers_see_it() -> None:
    model, found = planted(), {}
    loaded = probe.load(model)

    def see(layer: int, sample: int, hidden: Tensor) -> None:
        found[layer] = hidden[0, CHANNEL].item()

    with loaded.calls(lambda sample, call: None, on_residual=see):
        one = set_activations(1, [CHANNEL], [5.0])(model)
        one.__enter__()
        with set_activations(1, [CHANNEL], [6.0])(model):
            loaded.prefill(PROMPT)
            assert found[1] == 6.0
        loaded.prefill(PROMPT)
        assert found[1] == 5.0
        one.__exit__(None, None, None)
        loaded.prefill(PROMPT)
        assert found[1] > 100


def test_nothing_is_left_after_an_error() -> None:
    model = planted()
    before = logits(model)

    def body() -> None:
        with set_activations(1, [CHANNEL])(model):
            raise RuntimeError("in the body")

    with pytest.raises(RuntimeError, match="in the body"):
        body()
    assert torch.equal(logits(model), before)


def test_gpt2_has_a_residual_stream_too() -> None:
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad(), set_activations(1, range(48), [0.0] * 48, [4])(model):
        # After the last layer nothing but the final norm follows: of zeros, its bias.
        expected = model.transformer.ln_f.bias @ model.lm_head.weight.T
        torch.testing.assert_close(model(torch.tensor([tokens(9)])).logits[0, 4], expected)


def test_it_comes_back_from_json() -> None:
    for asked, _ in CASES.values():
        assert Intervention.from_json(asked.to_json()) == asked
    asked = set_activations(1, [3], "mean", reference=[[1, 2], "text"])
    assert Intervention.from_json(asked.to_json()) == asked


def test_what_does_not_apply_is_refused_by_field() -> None:
    model = planted()
    for fields, words in (
        ({"layer": 3, "channels": [1]}, "layer is 3, .* layers 0 to 2"),
        ({"layer": 0, "channels": [32]}, "channels name 32, .* 32 channels"),
        (
            {"layer": 0, "channels": [1], "values": "mean", "positions": [9], "reference": [[1, 2]]},
            "reference has no token",
        ),
    ):
        with pytest.raises(UsageError, match=words), set_activations(**fields)(model):  # type: ignore[arg-type]
            pass
    for fields, words in (
        ({"channels": []}, "channels"),
        ({"channels": [1], "values": "median"}, "values is 'median'"),
        ({"channels": [1], "values": [1.0, 2.0]}, "values are one finite number for each of 1"),
        ({"channels": [1], "values": "mean"}, "reference"),
        ({"channels": [1], "positions": "last"}, "positions is 'last'"),
        ({"channels": [1], "positions": []}, "positions"),
        ({"channels": [1], "times_median": 0}, "times_median"),
    ):
        with pytest.raises(UsageError, match=f"set_activations: .*{words}"):
            set_activations(0, **fields)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="positions name 9, and 'a' has 3 tokens"):
        set_activations(0, [1], positions=[9]).check(model, Sample("a", (1, 2, 3)))
    with pytest.raises(UsageError, match="reference is text"), set_activations(0, [1], "mean", reference=["a"])(model):
        pass


def test_a_kind_of_token_that_the_reference_lacks_is_named() -> None:
    model = planted()
    intervention = set_activations(1, [CHANNEL], "mean", "massive", reference=[[MASSIVE, 1, 2]])
    with (
        intervention(model),
        pytest.raises(UsageError, match=r"no massive activation after its first token.*position 12"),
    ):
        logits(model)

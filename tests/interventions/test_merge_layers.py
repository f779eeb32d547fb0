"""MiniCache against a dense float64 merge, in every way a prompt can go through."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import probe
from probe.errors import UsageError
from probe.hooks.intervention import Intervention
from probe.hooks.merge_layers import merge_layers, merged
from tests.interventions.dense_model import MODELS, causal, dense_logits, gpt2, llama, plain, tokens

ASKED = [merge_layers(start=0, kept=0.2), merge_layers(t=0.3, start=1, kept=0.0), merge_layers(start=0, t=1.0)]


def slerp(a: list[float], b: list[float], t: float) -> tuple[Tensor, float]:
    """The direction between two vectors, and their angle, by the formula on plain numbers."""
    one, other = (torch.tensor(each, dtype=torch.float64) / math.dist(each, [0.0] * len(each)) for each in (a, b))
    angle = math.acos(min(1.0, max(-1.0, float(one @ other))))
    return (math.sin((1 - t) * angle) * one + math.sin(t * angle) * other) / math.sin(angle), angle


def dense_merge(a: Tensor, b: Tensor, asked: merge_layers) -> tuple[Tensor, Tensor]:
    a, b = a.clone(), b.clone()
    for head in range(len(a)):
        made = [slerp(x, y, asked.t) for x, y in zip(a[head].tolist(), b[head].tolist(), strict=True)]
        kept = sorted(range(len(made)), key=lambda at: -made[at][1])[: int(len(made) * asked.kept)]
        for at, (direction, _) in enumerate(made):
            if at not in kept:
                a[head, at], b[head, at] = direction * a[head, at].norm(), direction * b[head, at].norm()
    return a, b


def pairs(asked: merge_layers, num_layers: int) -> dict[int, tuple[int, int]]:
    start = num_layers // 2 if asked.start is None else asked.start
    found = [(lower, lower + 1) for lower in range(start, num_layers - 1, 2)]
    return {layer: pair for pair in found for layer in pair}


def dense(model: Any, ids: list[int], prompt: int, asked: merge_layers) -> Tensor:
    """Logits of a prompt of so many tokens and of what follows it on the merged cache."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    of_layer = pairs(asked, model.config.num_hidden_layers)

    def seeing(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        found[layer] = key[:, :prompt], value[:, :prompt]
        return plain(layer, query, key, value, scale)

    dense_logits(model, ids, seeing)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output = plain(layer, query, key, value, scale)
        if layer not in of_layer:
            return output
        (low, high), key, value = of_layer[layer], key.clone(), value.clone()
        for which, whole in enumerate((key, value)):
            whole[:, :prompt] = dense_merge(found[low][which], found[high][which], asked)[layer != low]
        later = causal(query @ key.transpose(1, 2) * scale).softmax(-1) @ value
        return torch.cat([output[:, :prompt], later[:, prompt:]], 1)

    return dense_logits(model, ids, attend)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize(("length", "prompt"), [(8, 1), (33, 32), (61, 50)])
def test_agrees_with_its_dense_definition(architecture: str, asked: merge_layers, length: int, prompt: int) -> None:
    model, ids = MODELS[architecture](), tokens(length)
    if asked.start == 1 and model.config.num_hidden_layers == 2:
        with pytest.raises(UsageError, match="start 1 leaves no pair"), asked(model):
            pass
        return
    expected = dense(model, ids, prompt, asked)
    before = model(torch.tensor([ids])).logits
    with asked(model), torch.no_grad():
        first = model(torch.tensor([ids[:prompt]]), use_cache=True)
        rest = model(torch.tensor([ids[prompt:]]), past_key_values=first.past_key_values)
    made = torch.cat([first.logits[0], rest.logits[0]])
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)
    assert (made[prompt:] - before[0, prompt:]).abs().max() > 1e-3
    assert torch.equal(model(torch.tensor([ids])).logits, before)


def test_a_sample_is_decoded_from_the_merged_cache() -> None:
    model, ids, asked = llama(), tokens(50), ASKED[0]
    expected = dense(model, [*ids, 5], 49, asked)[49:]
    with asked(model):
        pieces = probe.load(model)
        state = pieces.prefill(ids[:-1], chunk_tokens=16)
        mark = pieces.mark(state)
        together = pieces.step(state, [ids[-1], 5])
        pieces.rollback(state, mark)
        one_by_one = torch.cat([pieces.step(state, [token]) for token in (ids[-1], 5)])
    for made in (together, one_by_one):
        torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_trace_shows_the_merged_cache() -> None:
    model, ids, asked = llama(), tokens(40), ASKED[0]
    found: dict[int, Tensor] = {}
    whole: dict[int, tuple[Tensor, Tensor]] = {}
    dense_logits(
        model, ids, lambda layer, q, k, v, scale: whole.setdefault(layer, (k, v)) and plain(layer, q, k, v, scale)
    )
    with asked(model):
        trace = probe.trace(model, ids, statistics=["entropy"], max_new_tokens=1, check=False)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if layer < 2:
            key, value = key.clone(), value.clone()
            for which, each in enumerate((key, value)):
                each[:, :39] = dense_merge(whole[0][which][:, :39], whole[1][which][:, :39], asked)[layer]
        row = (query[:, -1:] @ key.transpose(1, 2) * scale).softmax(-1)
        found[layer] = torch.special.entr(row).sum(-1)[:, 0]
        output = plain(layer, query, *whole[layer], scale)
        return torch.cat([output[:, :-1], row @ value], 1)

    dense_logits(model, ids, attend)
    for layer, entropy in found.items():
        last = torch.from_numpy(trace["entropy"].sel(layer=layer).values).double()[:, -1]
        torch.testing.assert_close(last, entropy, rtol=1e-4, atol=1e-4)


def test_nothing_is_merged_where_all_is_kept() -> None:
    model, ids = gpt2(), tokens(30)
    plainly = probe.load(model)
    own = plainly.step(plainly.prefill(ids[:-1]), ids[-1:])
    with merge_layers(start=0, kept=1.0)(model):
        pieces = probe.load(model)
        made = pieces.step(pieces.prefill(ids[:-1]), ids[-1:])
    torch.testing.assert_close(made, own, rtol=1e-5, atol=1e-5)


def test_vectors_without_a_direction_between_them_stay() -> None:
    lower = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [3.0, 0.0]]])
    upper = torch.tensor([[[-2.0, 0.0], [0.0, 5.0], [1.0, 0.0], [0.0, 1.0]]])
    a, b = merged(lower, upper, 0.5, 0.0)
    assert torch.equal(a[0, :3], lower[0, :3])
    assert torch.equal(b[0, :3], upper[0, :3])
    half = 0.5**0.5
    torch.testing.assert_close(a[0, 3], torch.tensor([3 * half, 3 * half]))
    torch.testing.assert_close(b[0, 3], torch.tensor([half, half]))


def test_entered_in_the_middle_of_a_prompt() -> None:
    model = llama()
    pieces = probe.load(model)
    state = pieces.prefill(tokens(20))
    with merge_layers(start=0)(model), pytest.raises(UsageError, match=r"merge_layers.*enter it before"):
        pieces.step(state, [1])


def test_the_next_prompt_is_merged_anew() -> None:
    model, first, second = llama(), tokens(40), tokens(40, seed=4)
    with ASKED[0](model):
        pieces = probe.load(model)
        pieces.step(pieces.prefill(first[:-1]), first[-1:])
        made = pieces.step(pieces.prefill(second[:-1]), second[-1:])
    expected = dense(model, second, 39, ASKED[0])[39:]
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("fields", "named"), [
    ({"t": 1.5}, "t"), ({"kept": -0.1}, "kept"), ({"start": -1}, "start"), ({"layers": [0, 1]}, "layers"),
    ({"heads": [(0, 0)]}, "heads"), ({"queries": (0, 3)}, "queries"), ({"phase": "prefill"}, "phase"),
])  # fmt: skip
def test_fields_that_cannot_be(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"merge_layers: {named}"):
        merge_layers(**fields)


def test_it_comes_back_from_json() -> None:
    assert Intervention.from_json(ASKED[1].to_json()) == ASKED[1]

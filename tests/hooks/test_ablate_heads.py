"""Ablated heads contribute what the form says, in the phase that is named, and the model is unharmed afterwards."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import probe
from probe.errors import UsageError
from probe.hooks.ablate_heads import ablate_heads
from probe.hooks.intervention import Intervention
from probe.hooks.models.huggingface import load

FORMS = ["zero", "mean", "uniform"]
PHASES = ["both", "prefill", "decode"]
KINDS = ["llama-gqa", "qwen3-sliding-full", "gpt2", "gemma2-softcap", "gpt-oss-sinks"]
REFERENCE = [list(range(3, 20)), list(range(20, 31))]


def ablation(heads: Any, form: str, phase: str = "both") -> ablate_heads:
    return ablate_heads(heads, form, phase, REFERENCE if form == "mean" else None)  # type: ignore[arg-type]


def logits_of(model: Any, prompt: Tensor) -> Tensor:
    with torch.no_grad():
        return model.hf(input_ids=prompt).logits


def projection_of(hf: Any, layer: int) -> tuple[Any, str]:
    """The module whose input is the heads' outputs side by side."""
    if hasattr(hf, "transformer"):
        return hf.transformer.h[layer].attn.c_proj, "c_proj"
    return hf.model.layers[layer].self_attn.o_proj, "o_proj"


def heads_of(hf: Any, prompt: Tensor, layer: int) -> Tensor:
    """`token head channel` that goes into the output projection, read there and nowhere of ours."""
    seen: list[Tensor] = []
    hook = projection_of(hf, layer)[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        hf(input_ids=prompt)
    hook.remove()
    return seen[0][0].reshape(prompt.shape[1], 4, -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_head_puts_out_what_its_form_says_in_its_phase_alone(
    make: Any, tokens: Any, attention: Any, kind: str, form: str, phase: str
) -> None:
    model, prompt = load(make(kind)), tokens(1, 19)
    intact = heads_of(model.hf, prompt, 0)
    with model.calls(attention), ablation([(0, 2)], form, phase)(model):
        found = heads_of(model.hf, prompt, 0)
    if form == "zero":
        wanted = torch.zeros_like(intact[:, 2])
    elif form == "mean":
        reference = [heads_of(model.hf, torch.tensor([each]), 0)[:, 2] for each in REFERENCE]
        wanted = torch.cat(reference).double().mean(dim=0).float().expand_as(intact[:, 2])
    else:
        calls = [call for _, call in attention.calls if call.layer == 0]
        value = calls[-1].value[2 // (4 // calls[-1].num_kv_heads)].double()
        sink = 0.0 if calls[-1].sink_logit is None else float(calls[-1].sink_logit[2].double().exp())
        window = calls[-1].window or 19
        rows = [value[max(0, i + 1 - window) : i + 1] for i in range(19)]
        wanted = torch.stack([each.sum(dim=0) / (len(each) + sink) for each in rows]).float()
    changed = {"both": slice(0, 19), "prefill": slice(0, 18), "decode": slice(18, 19)}[phase]
    expected = intact.clone()
    expected[changed, 2] = wanted[changed]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(intact.abs().max()) + 1e-6)
    others = [0, 1, 3]
    assert torch.equal(found[:, others], intact[:, others])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["llama-gqa", "qwen3-sliding-full"])
def test_generate_and_the_toolkits_own_steps_ablate_alike(
    make: Any, tokens: Any, kind: str, form: str, phase: str
) -> None:
    model, prompt = load(make(kind)), tokens(1, 19)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with ablation([(0, 1), (1, 3)], form, phase)(model):
        out = model.hf.generate(
            prompt, attention_mask=torch.ones_like(prompt), **options, output_logits=True, return_dict_in_generate=True
        )
        state, feed = model.prefill(prompt[0, :-1].tolist(), chunk_tokens=7), int(prompt[0, -1])
        for expected in out.logits:
            logits = model.step(state, [feed])[-1]
            torch.testing.assert_close(logits, expected[0].to(logits), rtol=0, atol=1e-4)
            feed = int(logits.argmax())
    assert out.sequences[0, 19:].tolist()[-1] == feed


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_bit_identical_afterwards_even_when_the_block_raises(
    make: Any, tokens: Any, kind: str, form: str
) -> None:
    model, prompt = load(make(kind)), tokens(1, 19)
    weights, before = model.weights_sha256, logits_of(model, prompt)
    name = model.attention_implementation
    with ablation([(0, 0), (1, 2)], form)(model):
        assert not torch.equal(logits_of(model, prompt), before)
    with pytest.raises(RuntimeError, match="the body"), ablation([(0, 0)], form)(model):
        raise RuntimeError("the body")
    assert torch.equal(logits_of(model, prompt), before)
    assert load(model.hf).weights_sha256 == weights
    assert model.attention_implementation == name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_no_heads_change_nothing(make: Any, tokens: Any) -> None:
    model, prompt = load(make("llama-gqa")), tokens(1, 19)
    before = logits_of(model, prompt)
    with ablate_heads([])(model):
        assert torch.equal(logits_of(model, prompt), before)


def test_a_bare_transformers_model_is_ablated_the_same(make: Any, tokens: Any) -> None:
    model, prompt = load(make("llama-gqa")), tokens(1, 19)
    with ablate_heads([(0, 1)])(model):
        expected = logits_of(model, prompt)
    with ablate_heads([(0, 1)])(model.hf):
        assert torch.equal(logits_of(model, prompt), expected)


def test_nested_ablations_equal_one_of_both_heads(make: Any, tokens: Any) -> None:
    model, prompt = load(make("llama-gqa")), tokens(1, 19)
    with ablate_heads([(0, 1), (1, 2)])(model):
        expected = logits_of(model, prompt)
    with ablate_heads([(0, 1)])(model):
        with ablate_heads([(1, 2)])(model):
            assert torch.equal(logits_of(model, prompt), expected)
        inner_left = logits_of(model, prompt)
    with ablate_heads([(0, 1)])(model):
        assert torch.equal(logits_of(model, prompt), inner_left)


def test_of_two_forms_on_one_head_the_inner_one_has_the_last_word(make: Any, tokens: Any) -> None:
    model, prompt = load(make("llama-gqa")), tokens(1, 19)
    with ablation([(0, 1)], "zero")(model), ablation([(0, 1)], "mean")(model):
        found = logits_of(model, prompt)
    with ablation([(0, 1)], "mean")(model):
        assert torch.equal(logits_of(model, prompt), found)


@pytest.mark.parametrize("capture_outside", [True, False])
def test_capture_sees_queries_as_the_ablation_made_them_and_no_reference_run(
    make: Any, tokens: Any, attention: Any, capture_outside: bool
) -> None:
    model, prompt = load(make("llama-gqa")), tokens(1, 19)
    mean, uniform = ablation([(1, 0)], "mean"), ablation([(0, 3)], "uniform", "decode")
    order = [lambda: model.calls(attention), lambda: mean(model), lambda: uniform(model)]
    first, second, third = order if capture_outside else reversed(order)
    with first(), second(), third():
        logits_of(model, prompt)
    assert len(attention.calls) == 4
    prefill, decode = (call for _, call in attention.calls if call.layer == 0)
    assert bool(decode.query[3].eq(0).all())
    assert bool(decode.query[:3].ne(0).any())
    assert bool(prefill.query[3].ne(0).any())


def test_right_padding_decodes_at_each_samples_own_last_token(make: Any, tokens: Any) -> None:
    model, prompt = load(make("llama-gqa")), tokens(2, 19)
    mask = torch.ones(2, 19, dtype=torch.long)
    mask[1, 11:] = 0
    with ablate_heads([(0, 1), (1, 1)], "zero", "decode")(model), torch.no_grad():
        batch = model.hf(input_ids=prompt, attention_mask=mask).logits
        alone = model.hf(input_ids=prompt[1:, :11]).logits
    torch.testing.assert_close(batch[1, :11], alone[0], rtol=0, atol=1e-5)


def test_a_reference_may_be_text_where_there_is_a_tokenizer(make: Any, tokens: Any) -> None:
    model, prompt = probe.load("needle"), torch.arange(3, 30)[None]
    text = "The baker found the old map in the evening."
    ids = model.tokenizer(text)["input_ids"]
    heads = [(2, 5), (1, 3)]
    with ablate_heads(heads, "mean", reference=[ids])(model):
        expected = logits_of(model, prompt)
    written = ablate_heads(heads, "mean", reference=[text])
    with Intervention.from_json(json.loads(json.dumps(written.to_json())))(model):
        assert torch.equal(logits_of(model, prompt), expected)
    with pytest.raises(UsageError, match="reference is text, and the model brings no tokenizer"), written(model.hf):
        pass


def test_queries_that_are_chosen_in_a_padded_batch(make: Any, tokens: Any) -> None:
    model, prompt = load(make("llama-gqa")), tokens(2, 19)
    mask = torch.ones(2, 19, dtype=torch.long)
    mask[1, :8] = 0
    with ablate_heads([(0, 1), (1, 1)], queries=(3, 6))(model), torch.no_grad():
        batch = model.hf(input_ids=prompt, attention_mask=mask).logits
        alone = model.hf(input_ids=prompt[1:, 8:]).logits
    torch.testing.assert_close(batch[1, 8:], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", [(2, 0), (0, 4), (-1, 0), (0, -1)])
def test_heads_that_the_model_does_not_have_are_refused_with_its_shape(make: Any, head: tuple[int, int]) -> None:
    model = load(make("llama-gqa"))
    reason = r"LlamaForCausalLM has no head .* it has 2 layers of 4 heads"
    with pytest.raises(UsageError, match=reason), ablate_heads([head])(model):
        pass
    assert model.attention_implementation == "sdpa"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"form": "none"}, "expected zero, mean, uniform"),
        ({"phase": "answer"}, "expected both, prefill, decode"),
        ({"form": "mean"}, "needs reference prompts"),
        ({"form": "mean", "reference": [[]]}, "needs reference prompts"),
        ({"heads": [3]}, "pairs of layer and head"),
        ({"queries": [4, 4]}, "queries is a range"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ablate_heads(**{"heads": [(0, 0)], **fields})


@pytest.mark.parametrize("form", FORMS)
def test_an_ablation_survives_json(form: str) -> None:
    made = ablation([(0, 1), (1, np.int64(2))], form, "decode")
    value = json.loads(json.dumps(made.to_json()))
    assert list(value) == ["ablate_heads"]
    assert Intervention.from_json(value) == made
    assert hash(Intervention.from_json(value)) == hash(made)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"ablate_heads": {"heads": [], "strength": 2}}, "no field strength; it has heads, form, phase, refer.*, part"),
        ({"ablate_everything": {}}, "there is no intervention 'ablate_everything'"),
        ({"ablate_heads": {}}, "heads"),
        ({}, "one name"),
    ],
)
def test_json_of_no_intervention_is_refused(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Intervention.from_json(value)

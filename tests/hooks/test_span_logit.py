"""Direct logit attribution: what heads, MLPs and the embedding add is the logit, by the models' own modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probe.capture import trace
from probe.errors import NotReproducible
from probe.hooks.models.huggingface import load
from probe.sample import Sample, Span

SPANS = (Span("needle", 3, 9), Span("question", 15, 20), Span("nothing", 4, 4))
ANSWER, DISTRACTORS = (5, 6, 7), ((9, 6, 11), (10, 8))
KINDS = ["llama", "llama-gqa", "qwen3-sliding-full", "gemma3", "gpt2", "gpt-neox", "olmo2", "deepseek-v3-value-width"]


def sample(tokens: Any, length: int = 20, **changes: Any) -> Sample:
    given: dict[str, Any] = {"spans": SPANS, "answer_tokens": ANSWER, "distractor_answers": DISTRACTORS}
    return Sample("some", tuple(tokens(length).tolist()), **{**given, **changes})


class ByHand:
    """A model's row taken apart with hooks of its own: in float64, from eager attention and the modules' names."""

    def __init__(self, hf: Any, row: list[int]) -> None:
        hf.set_attn_implementation("eager")
        self.hf, self.kept = hf, dict[str, torch.Tensor]()
        names = {module: name for name, module in hf.named_modules()}
        hooks = [
            module.register_forward_hook(
                lambda module, args, output: self.kept.update(
                    {
                        names[module]: (output[0] if isinstance(output, tuple) else output)[0].double(),
                        names[module] + "<": (args[0][0].double() if args and args[0].ndim == 3 else torch.empty(0)),
                    }
                )
            )
            for module in names
            if not isinstance(module, torch.nn.ModuleList) and names[module]
        ]
        with torch.no_grad():
            out = hf(input_ids=torch.tensor([row]), output_attentions=True, use_cache=False)
        for hook in hooks:
            hook.remove()
        self.logits, self.attention = out.logits[0, -1].double(), [a[0, :, -1].double() for a in out.attentions]

    def gain(self, name: str) -> torch.Tensor:
        weight = self.hf.get_submodule(name).weight.double()
        return weight + 1 if self.hf.config.model_type.startswith("gemma") else weight

    def through_norm(self, name: str, vector: torch.Tensor) -> torch.Tensor:
        """A part of the norm's last input, as the norm scales the whole of it; without the norm's bias."""
        norm, x = self.hf.get_submodule(name), self.kept[name + "<"][-1]
        if isinstance(norm, torch.nn.LayerNorm):
            vector = vector - vector.mean(-1, keepdim=True)
            scale = (x.var(unbiased=False) + norm.eps).sqrt()
        else:
            eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6))
            scale = (x.square().mean() + eps).sqrt()
        return vector * self.gain(name) / scale


PARTS = {
    # embedding (and positions), final norm, unembedding; attention, its projection, MLP, norms behind either
    "llama": ("model", ["embed_tokens"], "norm", "lm_head", "layers.{}.self_attn", "o_proj", "layers.{}.mlp", None),
    "gpt2": ("transformer", ["wte", "wpe"], "ln_f", "lm_head", "h.{}.attn", "c_proj", "h.{}.mlp", None),
    "gpt_neox": (
        "gpt_neox", ["embed_in"], "final_layer_norm", "embed_out",
        "layers.{}.attention", "dense", "layers.{}.mlp", None,
    ),
    "behind": (
        "model", ["embed_tokens"], "norm", "lm_head",
        "layers.{}.self_attn", "o_proj", "layers.{}.post_feedforward_layernorm", "layers.{}.post_attention_layernorm",
    ),
}  # fmt: skip


def parts_of(hf: Any) -> tuple[Any, ...]:
    kind = hf.config.model_type
    base, *rest = PARTS[
        "behind" if kind.startswith(("gemma", "olmo2")) else kind if kind.startswith("gpt") else "llama"
    ]
    found: list[Any] = []
    for part in rest:
        whole = isinstance(part, list)
        names = [f"{base}.{each}" for each in (part if whole else [part])]
        found.append(
            names
            if whole
            else None
            if part is None
            else part
            if part in ("lm_head", "embed_out", "o_proj", "c_proj", "dense")
            else names[0]
        )
    if not hasattr(hf, found[2]):
        found[2] = "lm_head"
    return tuple(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_tokens", [2048, 7])
def test_heads_mlps_and_embedding_add_up_to_the_logit(make: Any, tokens: Any, kind: str, chunk_tokens: int) -> None:
    hf = make(kind).double().requires_grad_(False)
    given = sample(tokens)
    traced = trace(load(hf), given, statistics="span_logit", check=False, chunk_tokens=chunk_tokens)
    assert traced["span_logit"].dims == ("layer", "head", "row", "span")
    response = traced.outcome.response_tokens
    embedding, norm, unembedding, attention, projection, mlp, behind = parts_of(hf)
    for row in range(len(ANSWER)):
        by_hand = ByHand(hf, [*given.tokens, *response[:row]])
        others = [each[row] for each in DISTRACTORS if row < len(each) and each[row] != ANSWER[row]]
        found = traced["span_logit"].values[:, :, row]
        if not others:
            assert np.isnan(found).all()
            continue
        module = hf.get_submodule(unembedding)
        weight = module.weight.double()
        apart = weight[ANSWER[row]] - weight[others].mean(0)

        def logit(vector: torch.Tensor, apart: torch.Tensor = apart, by_hand: ByHand = by_hand) -> torch.Tensor:
            return by_hand.through_norm(norm, vector) @ apart

        whole = sum(logit(by_hand.kept[name][-1]) for name in embedding)
        bias = getattr(hf.get_submodule(norm), "bias", None)
        whole += 0 if bias is None else bias.double() @ apart
        for layer in range(2):
            place = attention.format(layer)
            linear = hf.get_submodule(f"{place}.{projection}")
            matrix = linear.weight.double() if projection == "c_proj" else linear.weight.double().T
            pattern = by_hand.attention[layer]
            value = values_of(hf, place, by_hand, pattern.shape)
            each = torch.einsum("hk,hkd,hdc->hkc", pattern, value, matrix.view(len(pattern), -1, matrix.shape[1]))
            after = each if behind is None else by_hand.through_norm(behind.format(layer), each)
            added = logit(after)
            for index, span in enumerate(SPANS):
                np.testing.assert_allclose(
                    found[layer, :, index], added[:, span.start : span.stop].sum(-1).numpy(), atol=2e-6, rtol=2e-5
                )
            heads = traced["span_logit_all"].values[layer, :, row]
            np.testing.assert_allclose(heads, added.sum(-1).numpy(), atol=2e-6, rtol=2e-5)
            whole += float(heads.sum(dtype=np.float64))
            if linear.bias is not None:
                plain = linear.bias.double()
                whole += logit(plain if behind is None else by_hand.through_norm(behind.format(layer), plain))
            whole += logit(by_hand.kept[mlp.format(layer)][-1])
        wanted = by_hand.logits[ANSWER[row]] - by_hand.logits[others].mean()
        assert float(whole) == pytest.approx(float(wanted), abs=2e-5)


def values_of(hf: Any, place: str, by_hand: ByHand, shape: Any) -> torch.Tensor:
    """Values [head, key, channel] as the modules named so made them."""
    heads, keys = shape
    if hf.config.model_type == "gpt2":
        return by_hand.kept[f"{place}.c_attn"].chunk(3, -1)[2].view(keys, heads, -1).transpose(0, 1)
    if hf.config.model_type == "gpt_neox":
        made = by_hand.kept[f"{place}.query_key_value"].view(keys, heads, 3, -1)
        return made[:, :, 2].transpose(0, 1)
    if hf.config.model_type == "deepseek_v3":
        made = by_hand.kept[f"{place}.kv_b_proj"].view(keys, heads, -1)[..., -hf.config.v_head_dim :]
        return made.transpose(0, 1)
    made = by_hand.kept[f"{place}.v_proj"].view(keys, hf.config.num_key_value_heads, -1).transpose(0, 1)
    return made.repeat_interleave(heads // len(made), 0)


def test_without_distractors_the_vocabularys_mean_stands_on_the_other_side(make: Any, tokens: Any) -> None:
    hf = make("llama-gqa").double()
    with torch.no_grad():
        hf.lm_head.weight[5] += 3.0
    given = sample(tokens, distractor_answers=(), answer_tokens=(5,))
    found = trace(load(hf), given, statistics="span_logit", check=False)["span_logit"].values
    # The mean over the vocabulary is the mean of what every other single distractor gives, the answer's own 0 included.
    each = [
        trace(load(hf), sample(tokens, distractor_answers=((other,),), answer_tokens=(5,)), statistics="span_logit",
              check=False)["span_logit"].values
        for other in range(len(hf.lm_head.weight)) if other != 5
    ]  # fmt: skip
    np.testing.assert_allclose(found, np.sum(each, 0) / len(hf.lm_head.weight), atol=1e-5)


def test_rows_beyond_the_answer_are_nan(make: Any, tokens: Any) -> None:
    given = sample(tokens, answer_tokens=(5,))
    found = trace(load(make("llama-gqa")), given, statistics="span_logit", max_new_tokens=3, check=False)
    finite = np.isfinite(found["span_logit_all"].values)
    assert finite[:, :, 0].all()
    assert not finite[:, :, 1:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_what_float32_says_of_the_same_weights(make: Any, tokens: Any, dtype: Any) -> None:
    hf = make("llama-gqa", initializer_range=0.1).to(dtype)
    given = sample(tokens, answer_tokens=(5,))
    found = trace(load(hf), given, statistics="span_logit", check=False)["span_logit"].values
    exact = trace(load(hf.float()), given, statistics="span_logit", check=False)["span_logit"].values
    np.testing.assert_allclose(found, exact, atol=40 * torch.finfo(dtype).eps * np.abs(exact).max())


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gemma2-softcap", {}, "final_logit_softcapping = 30.0"),
        ("granite", {"residual_multiplier": 0.22}, "its attention's output as it is"),
        ("granite", {"logits_scaling": 8.0}, "logits_scaling = 8.0"),
        ("cohere", {}, "logit_scale = 0.0625"),
        ("bloom", {"n_head": 4}, "its attention's output as it is"),
    ],
)
def test_a_model_whose_direct_path_is_another_is_refused_by_name(
    make: Any, tokens: Any, kind: str, changes: dict[str, Any], reason: str
) -> None:
    model = load(make(kind, **changes))
    with pytest.raises(NotReproducible, match=reason) as error:
        trace(model, sample(tokens), statistics="span_logit", check=False)
    assert type(model.hf).__name__ in str(error.value)
    # Among other statistics it alone is left out, and the trace says why.
    traced = trace(model, sample(tokens), statistics=["span_mass", "span_logit"], check=False)
    assert "span_mass" in traced
    assert "span_logit" not in traced
    assert reason in traced.provenance["left_out"]["span_logit"]


def test_a_sample_without_a_right_answer_has_no_logit_to_speak_of(make: Any, tokens: Any) -> None:
    given = sample(tokens, answer_tokens=(), distractor_answers=())
    traced = trace(load(make("llama")), given, statistics=["span_mass", "span_logit"], check=False)
    assert "no right answer" in traced.provenance["left_out"]["span_logit"]


def test_a_gate_behind_the_heads_is_refused(make: Any, tokens: Any) -> None:
    hf = make("llama")
    hf.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    with pytest.raises(NotReproducible, match="layer 1: something stands between its heads' outputs"):
        trace(load(hf), sample(tokens), statistics="span_logit", check=False)

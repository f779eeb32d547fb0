"""A TransformerLens bridge goes on as ever while it is watched, and is as before afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import probe
from probe.conformance.random_model import random_model, recipe
from probe.errors import NotReproducible, UsageError
from probe.hooks.attention.bridge import bridge_components
from probe.kernels.call import Call
from tests.backends.conftest import bridged, made

pytest.importorskip("transformer_lens")

TOKENS = torch.tensor([np.random.default_rng(5).integers(1, 60, 41).tolist()])


class largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that was made."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_iter(result):
            if isinstance(each, torch.Tensor):
                self.size = max(self.size, each.untyped_storage().nbytes() // each.element_size())
        return result


def calls(model: Any, run: Any) -> dict[tuple[int, str], Call]:
    found: dict[tuple[int, str], Call] = {}
    with torch.no_grad(), model.calls(lambda _, call: found.update({(call.layer, call.phase): call})):
        run()
    return found


def same(actual: dict[Any, Call], expected: dict[Any, Call]) -> None:
    assert set(actual) == set(expected)
    for where, call in expected.items():
        for name in ("query", "key", "value"):
            torch.testing.assert_close(getattr(actual[where], name), getattr(call, name), rtol=1e-4, atol=1e-5)
        assert actual[where].scale == pytest.approx(call.scale)
        assert (actual[where].window, actual[where].softcap) == (call.window, call.softcap)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "gemma3"])
def test_no_tensor_grows_with_the_square_of_the_prompt(family: str) -> None:
    length = 384
    bridge = bridged(made(family))
    model = probe.load(bridge)
    tokens = torch.randint(1, 90, (1, length))
    with torch.no_grad():
        with largest() as alone:
            bridge(tokens)
        with model.calls(lambda *_: None), largest() as watched:
            bridge(tokens)
    assert alone.size >= 4 * length**2
    # A window needs its mask, which transformers makes; in chunks of a prompt that too is bounded.
    windowed = any(getattr(each, "sliding_window", None) for each in bridge_components(model.hf))
    # Scores are held a few rows at a time where fused operators do not know a softcap.
    softcap = family == "gemma2"
    assert watched.size < (1 << 24 if softcap else 2 * length**2 if windowed else length**2)


def test_a_bridge_is_bit_identical_afterwards_with_the_hooks_it_had() -> None:
    bridge = bridged(made("llama"))
    heard: list[str] = []
    bridge.add_hook("blocks.1.hook_out", lambda tensor, hook: heard.append(hook.name))
    before, state = bridge(TOKENS), {id(m): dict(vars(m)) for m in bridge.original_model.modules()}
    names = {key: set(each) for key, each in state.items()}
    probe.trace(probe.load(bridge), TOKENS[0].tolist(), statistics=["entropy", "residual_norm", "loss"])
    assert torch.equal(bridge(TOKENS), before)
    assert {id(m): set(vars(m)) for m in bridge.original_model.modules()} == names
    assert "blocks.1.hook_out" in bridge.list_hooks()
    assert len({id(handle) for handles in bridge.list_hooks().values() for handle in handles}) == 1
    assert bridge.original_model.config._attn_implementation == "sdpa"
    assert heard[0] == "blocks.1.hook_out"


def test_it_is_as_before_after_an_error_and_a_refusal() -> None:
    bridge = bridged(made("llama"))
    before, names = bridge(TOKENS), {id(m): set(vars(m)) for m in bridge.original_model.modules()}
    model = probe.load(bridge)

    def fails(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), torch.no_grad(), model.calls(fails):
        bridge(TOKENS)
    assert torch.equal(bridge(TOKENS), before)
    assert {id(m): set(vars(m)) for m in bridge.original_model.modules()} == names


def test_the_object_is_not_copied() -> None:
    hf = made("llama")
    bridge = bridged(hf)
    model: Any = probe.load(bridge)
    assert model.hf is hf
    assert model.bridge is bridge
    assert probe.load(model) is model


def from_recipe(name: str) -> Any:
    torch.manual_seed(0)
    return random_model(recipe(name)).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "name", ["mistral", "exaone4", "gpt_oss", "deepseek_v3", "cohere2", "codegen", "falcon", "smollm3", "qwen3_next"]
)
def test_what_other_architectures_have_is_read_from_the_bridge(name: str) -> None:
    """Windows of some layers, sinks, values of another width, one key-value head, layers without rotation."""
    asked = {"statistics": ["log_sum_exp", "entropy", "received_mass", "key_norm"], "chunk_tokens": 16}
    expected = probe.trace(probe.load(from_recipe(name)), TOKENS[0].tolist()[:30], **asked)
    actual = probe.trace(probe.load(bridged(from_recipe(name))), TOKENS[0].tolist()[:30], **asked)
    for statistic in asked["statistics"]:
        np.testing.assert_allclose(
            actual[statistic].values, expected[statistic].values, rtol=1e-4, atol=1e-5, err_msg=statistic
        )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mpt", "a forward of 16 tokens with its bridge's attention watched failed"),
        ("glm_moe_dsa", "layer 0.*its TransformerLens bridge.*relu on its scores"),
        ("bloom", "layer 0.*did not attend"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(NotReproducible, match=reason):
        probe.trace(probe.load(bridged(from_recipe(name))), TOKENS[0].tolist()[:9], statistics=["entropy"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2", "gemma3"])
def test_our_hooks_can_be_added_with_run_with_hooks(family: str) -> None:
    bridge = bridged(made(family))
    model: Any = probe.load(bridge)
    expected = calls(model, lambda: bridge(TOKENS))
    found: dict[tuple[int, str], Call] = {}
    hooks = model.fwd_hooks(lambda _, call: found.update({(call.layer, call.phase): call}))
    with torch.no_grad():
        logits = bridge.run_with_hooks(TOKENS, fwd_hooks=hooks)
        assert torch.equal(logits, bridge(TOKENS))
    same(found, expected)
    assert not bridge.list_hooks()


def test_hook_points_that_do_not_show_queries_are_refused_by_name() -> None:
    bridge = bridged(made("gpt_neox"))
    model: Any = probe.load(bridge)
    hooks = model.fwd_hooks(lambda *_: None)
    with pytest.raises(NotReproducible, match=r"layer 0.*did not show its key and query"), torch.no_grad():
        bridge.run_with_hooks(TOKENS, fwd_hooks=hooks)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_hooks_of_the_user_fire_while_it_is_watched(family: str) -> None:
    bridge = bridged(made(family))
    model = probe.load(bridge)
    names = [
        name
        for name in bridge.hook_dict
        if name.endswith(("hook_in", "hook_out", "hook_rot_q", "hook_rot_k", "hook_pattern", "hook_attn_scores"))
    ]

    def run() -> dict[str, torch.Tensor]:
        kept: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            bridge.run_with_hooks(
                TOKENS, fwd_hooks=[(n, lambda t, hook: kept.update({hook.name: t.clone()})) for n in names]
            )
        return kept

    expected, actual = run(), {}
    same(calls(model, lambda: actual.update(run())), calls(model, lambda: bridge(TOKENS)))
    assert set(actual) == set(expected)
    hidden = torch.ones(TOKENS.shape[1], TOKENS.shape[1], dtype=torch.bool).triu(1)
    for name, tensor in expected.items():
        mine = actual[name]
        if name.endswith("hook_attn_scores"):
            # What is hidden is a very negative number, whose last digits depend on who hid it.
            tensor, mine = (each.masked_fill(hidden, 0) for each in (tensor, mine))
        torch.testing.assert_close(mine, tensor, rtol=1e-4, atol=2e-5, msg=name)


def test_run_with_cache_goes_on() -> None:
    bridge = bridged(made("llama"))
    model = probe.load(bridge)
    with torch.no_grad():
        logits, expected = bridge.run_with_cache(TOKENS)
        with model.calls(lambda *_: None):
            watched, cache = bridge.run_with_cache(TOKENS)
    torch.testing.assert_close(watched, logits, rtol=1e-4, atol=1e-5)
    assert set(cache) == set(expected)
    torch.testing.assert_close(
        cache["blocks.0.attn.hook_pattern"], expected["blocks.0.attn.hook_pattern"], rtol=1e-4, atol=1e-5
    )


def test_what_a_users_hook_does_to_queries_is_in_the_calls() -> None:
    bridge = bridged(made("llama"))
    model = probe.load(bridge)

    def run() -> None:
        bridge.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.attn.hook_rot_q", lambda tensor, hook: tensor * 0)])

    found = calls(model, run)
    assert not found[1, "prefill"].query.any()
    assert found[0, "prefill"].query.any()


def test_a_pattern_that_a_hook_changes_is_refused_by_name_and_left_to_the_user() -> None:
    bridge = bridged(made("llama"))
    model = probe.load(bridge)

    def first_key_only(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.zeros_like(pattern).index_fill(-1, torch.tensor([0]), 1.0)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return bridge.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.attn.hook_pattern", first_key_only)])

    with pytest.raises(NotReproducible, match="layer 0: the attention output cannot be reproduced"):
        calls(model, run)
    expected = run()
    with probe.ablate_heads([])(bridge):
        torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_compatibility_mode_is_watched_too(family: str) -> None:
    bridge = bridged(made(family))
    bridge.enable_compatibility_mode(disable_warnings=True)
    with torch.no_grad():
        expected = bridge(TOKENS)
    model = probe.load(bridge)
    asked = {"statistics": ["entropy", "mean_distance", "received_mass"]}
    # Folding norms into weights and centring them changes logits and keys, and no probability.
    plain = probe.trace(probe.load(made(family)), TOKENS[0].tolist(), **asked)
    actual = probe.trace(model, TOKENS[0].tolist(), **asked)
    for name in asked["statistics"]:
        np.testing.assert_allclose(actual[name].values, plain[name].values, rtol=1e-3, atol=1e-4, err_msg=name)
    assert actual.provenance["bridge"]["compatibility_mode"] is True
    with torch.no_grad():
        assert torch.equal(bridge(TOKENS), expected)


def test_split_inputs_and_head_results_are_watched_too() -> None:
    bridge = bridged(made("gpt2"))
    bridge.set_use_attn_result(True)
    bridge.set_use_split_qkv_input(True)
    model = probe.load(bridge)
    expected = calls(probe.load(made("gpt2")), lambda: None) or calls(
        plain := probe.load(made("gpt2")), lambda: plain.hf(TOKENS)
    )
    same(calls(model, lambda: bridge(TOKENS)), expected)


def test_an_encoder_is_refused_by_name() -> None:
    for name in ("bert", "bart"):
        with pytest.raises(NotReproducible, match="encoders are not read through TransformerLens"):
            probe.load(bridged(from_recipe(name)))


def test_a_bridge_whose_calls_are_not_its_pattern_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = bridged(made("llama"))
    attention = type(bridge.blocks[0].attn)
    own = attention._masked_softmax

    def sharper(component: Any, scores: Any, **kwargs: Any) -> Any:
        return own(component, scores * 1.01 if isinstance(scores, torch.Tensor) else scores, **kwargs)

    said = probe.load(bridge).provenance()["bridge"]["compared_with_pattern"]
    assert "differ from the bridge's own hook_pattern" in said
    trace = probe.trace(probe.load(bridge), TOKENS[0].tolist(), statistics=["entropy"])
    assert "hook_pattern" in trace.provenance["compared_with_eager"]
    monkeypatch.setattr(attention, "_masked_softmax", sharper)
    model = probe.load(bridge)
    with pytest.raises(NotReproducible, match="layer 0: what is captured is not the pattern"), model.calls(None):
        pass


def test_a_transformers_object_is_not_made_into_a_bridge() -> None:
    with pytest.raises(UsageError, match="make it yourself"):
        probe.load(made("llama"), backend="transformer_lens")


def test_options_of_loading_are_refused_for_a_bridge_that_is_there() -> None:
    with pytest.raises(UsageError, match="dtype cannot be chosen"):
        probe.load(bridged(made("llama")), dtype="bfloat16")


def test_head_output_norms_agree() -> None:
    from probe.hooks.attention.head_output_norm import head_output_norm

    for family in ("llama", "gpt2", "gpt_neox"):
        expected = head_output_norm(probe.load(made(family)), [TOKENS[0].tolist()])
        actual = head_output_norm(probe.load(bridged(made(family))), [TOKENS[0].tolist()])
        np.testing.assert_allclose(actual, expected, rtol=1e-3)

"""A model whose layers lie on two devices: nothing of ours brings together what lies apart.

The second device is make-believe, since CI has no two: tensors that say they are elsewhere, and functions that refuse,
as torch does, to take tensors of both. Numbers have to be those of one device, to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import probe
from probe.hooks.attention.head_output_norm import head_output_norm

ELSEWHERE = torch.device("ipu:0")
# What brings a tensor from one device to another, or asks it something.
_MOVES = {"to", "copy_", "cpu", "tolist", "item", "__get__", "type_as", "is_floating_point"}
_TO_HOST = {"cpu", "numpy", "tolist", "item"}


class Elsewhere(Tensor):
    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class second_device(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: Any) -> Any:
    """Run a function of torch on the CPU, as if the tensors that are elsewhere were."""
    name = getattr(function, "__name__", "")
    if function == Tensor.device.__get__:
        return ELSEWHERE if isinstance(args[0], Elsewhere) else torch.device("cpu")
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    # An index may lie on the CPU whatever it points into.
    compared = tensors[:1] if name in ("__getitem__", "__setitem__") else tensors
    with torch._C.DisableTorchFunction():
        places = {isinstance(each, Elsewhere) for each in compared if each.dim() > 0}
    if len(places) > 1 and name not in _MOVES:
        raise RuntimeError(f"Expected all tensors to be on the same device, and {name} was given two")
    goes_there = asked_place(name, args, kwargs)
    if goes_there is None:
        goes_there = any(isinstance(each, Elsewhere) for each in tensors) and name not in _TO_HOST
    with torch._C.DisableTorchFunction():
        result = function(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))
    if args and name.endswith("_") and not name.endswith("__") and isinstance(result, Tensor):
        return args[0]
    return tree_map(there, result) if goes_there else result


def asked_place(name: str, args: Any, kwargs: Any) -> bool | None:
    """Whether a function was asked to put its result elsewhere; None where it was not asked."""
    asked = kwargs.get("device")
    if asked is None and name == "to":
        asked = next((each for each in args[1:] if isinstance(each, torch.device | str)), None)
        like = [each for each in args[1:] if isinstance(each, Tensor)]
        if like:
            return isinstance(like[0], Elsewhere)
    return None if asked is None else torch.device(asked).type == ELSEWHERE.type


def on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device | str) and str(value).startswith(ELSEWHERE.type):
        return torch.device("cpu")
    with torch._C.DisableTorchFunction():
        return value.as_subclass(Tensor) if isinstance(value, Elsewhere) else value


def there(value: Any) -> Any:
    with torch._C.DisableTorchFunction():
        return value.as_subclass(Elsewhere) if isinstance(value, Tensor) else value


def moved(to: Any) -> Any:
    return lambda value: value.to(to) if isinstance(value, Tensor) else value


def with_a_layer_elsewhere(hf: Any, layer_index: int = 1) -> Any:
    layer = hf.model.layers[layer_index]
    for module in layer.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(there(parameter.data), requires_grad=False)
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: (tree_map(moved(ELSEWHERE), args), tree_map(moved(ELSEWHERE), kwargs)),
        with_kwargs=True,
    )
    layer.register_forward_hook(lambda _, args, output: tree_map(moved("cpu"), output))
    return hf


STATISTICS = [
    "entropy", "log_sum_exp", "received_mass", "match_mass", "sink_mass", "attention_map", "distance_histogram",
    "top_keys", "key_layer_similarity", "value_layer_similarity", "key_norm", "residual_norm", "loss", "span_mass",
]  # fmt: skip
SAMPLE = probe.Sample(
    "two", tuple(range(3, 36)), spans=(probe.Span("needle", 4, 9),), answer_tokens=(7, 8), text="a text"
)


def traced(hf: Any, **options: Any) -> probe.Trace:
    return probe.trace(hf, SAMPLE, statistics=STATISTICS, scan="blocked", chunk_tokens=10, **options)


def test_the_make_believe_device_refuses_what_torch_refuses() -> None:
    with second_device():
        far = torch.ones(3, device=ELSEWHERE)
        assert (far.device, torch.ones(3).device) == (ELSEWHERE, torch.device("cpu"))
        assert (far + far).device == far[:1].device == ELSEWHERE
        assert float((far.to("cpu") + torch.ones(3)).sum()) == 6
        with pytest.raises(RuntimeError, match="same device"):
            far + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.cat([far, torch.ones(3)])


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen3-sliding-full", "mistral-window"])
def test_statistics_are_computed_where_the_layer_lies(make: Any, kind: str) -> None:
    expected = traced(make(kind, "eager"))
    with second_device():
        found = traced(with_a_layer_elsewhere(make(kind, "eager")))
    assert found.outcome == expected.outcome
    for name in (each for each in STATISTICS if each in expected):
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]), err_msg=name)
    assert found.provenance["weights_sha256"] == expected.provenance["weights_sha256"]


@pytest.mark.parametrize("form", ["zero", "uniform", "mean"])
def test_heads_are_ablated_where_they_lie(make: Any, form: Any) -> None:
    ablation = probe.ablate_heads([(0, 1), (1, 2)], form=form, reference=[SAMPLE.tokens] if form == "mean" else None)
    plain = make("llama-gqa", "eager")
    with ablation(plain):
        expected = traced(plain)
    with second_device():
        spread = with_a_layer_elsewhere(make("llama-gqa", "eager"))
        with ablation(spread):
            found = traced(spread)
        norms = head_output_norm(spread, [SAMPLE.tokens])
    np.testing.assert_array_equal(np.asarray(found["entropy"]), np.asarray(expected["entropy"]))
    np.testing.assert_allclose(norms, head_output_norm(plain, [SAMPLE.tokens]), rtol=1e-6)

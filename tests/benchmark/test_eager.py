"""The eager code that everything is compared with computes the statistics: the same numbers as their definitions."""

from __future__ import annotations

import pytest
import torch

from probe.benchmark.eager import STATISTICS, eager_statistics
from probe.benchmark.layer_inputs import layer_call
from probe.benchmark.result import LayerShape
from probe.benchmark.statistic_sets import CORE
from probe.kernels.dense import Dense
from probe.kernels.statistic import parse


def test_there_is_eager_code_for_the_whole_core_table() -> None:
    assert tuple(STATISTICS) == CORE


@pytest.mark.parametrize("length", [1, 15, 129, 300])
@pytest.mark.parametrize(
    "shape", [LayerShape(heads=4, kv_heads=2, head_dim=8), LayerShape(heads=3, kv_heads=3, head_dim=5)]
)
@pytest.mark.parametrize("name", CORE)
def test_eager_is_the_definition(name: str, shape: LayerShape, length: int) -> None:
    call = layer_call(shape, length, device="cpu", dtype="float32")
    found = eager_statistics(call, [name])
    statistic = parse(name)
    if statistic.kind == "key":
        wanted = {"": {"key_norm": call.key, "value_norm": call.value}[name].double().square().sum(-1).sqrt()}
    else:
        wanted = statistic.reference(Dense(call))
    names = {statistic.array_name(suffix): values for suffix, values in wanted.items()}
    assert set(found) == set(names)
    for key, values in found.items():
        want = names[key][..., : values.shape[-1]]
        assert values.shape == want.shape, key
        assert torch.allclose(values.double(), want.double(), rtol=1e-5, atol=1e-5), key


def test_bfloat16_logits_give_float32_statistics() -> None:
    call = layer_call(LayerShape(heads=2, kv_heads=1, head_dim=16), 64, device="cpu", dtype="bfloat16")
    found = eager_statistics(call, ["entropy", "log_sum_exp"])
    assert {values.dtype for values in found.values()} == {torch.float32}
    exact = parse("entropy").reference(Dense(call))[""]
    assert (found["entropy"].double() - exact).abs().max() < 0.02

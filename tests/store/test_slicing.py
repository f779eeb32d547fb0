"""Parts of a trace keep their own numbers, and traces merge where that is exact and are refused by name where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import probe
from probe.errors import UsageError
from probe.storage.run_folder import Run
from probe.storage.unit_trace import Trace

SUMS = ["distance_histogram", "received_mass", "attention_map", "offset_mass"]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return probe.load(AutoModelForCausalLM.from_config(config))


def made(model: Any, length: int, seed: int = 0, statistics: Any = None, **options: Any) -> Trace:
    tokens = torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(seed))
    return probe.trace(model, tokens, statistics=statistics or [*SUMS, "entropy", "key_norm", "loss"], **options)


@pytest.mark.parametrize("pool_tokens", [None, 8])
def test_a_part_is_labelled_by_its_own_numbers(model: Any, pool_tokens: int | None) -> None:
    trace = made(model, 129, pool_tokens=pool_tokens)
    part = trace.select(layers=[2, 0], heads=[3], positions=slice(17, 40))
    assert part["layer"].values.tolist() == [2, 0]
    assert part["head"].values.tolist() == [3]
    assert part["kv_head"].values.tolist() == [1]
    axis = "query" if pool_tokens is None else "query_block_8"
    first, last = (17, 39) if pool_tokens is None else (16, 32)
    assert part[axis].values[[0, -1]].tolist() == [first, last]
    step = pool_tokens or 1
    wanted = trace["entropy"].values[[2, 0]][:, [3], first // step : last // step + 1]
    np.testing.assert_array_equal(part["entropy"].values, wanted)
    assert part["key_norm"].shape[:2] == (2, 1)
    assert trace.select().identical(trace.dataset)


@pytest.mark.parametrize(
    ("selected", "said"),
    [
        ({"layers": [3]}, "no layer 3; there are 0, 1, 2"),
        ({"heads": [4]}, "no head 4; there are 0, 1, 2, 3"),
        ({"positions": slice(0, 130)}, "valid positions are 0:129"),
        ({"positions": slice(-1, 5)}, "valid positions are 0:129"),
    ],
)
def test_a_part_that_is_not_there_is_named(model: Any, selected: dict[str, Any], said: str) -> None:
    with pytest.raises(IndexError, match=said):
        made(model, 129).select(**selected)


def test_a_trace_without_an_axis_has_no_part_of_it(model: Any) -> None:
    loss = made(model, 9, statistics=["loss"])
    with pytest.raises(UsageError, match="no heads to choose"):
        loss.select(heads=[0])
    with pytest.raises(UsageError, match="no layers to choose"):
        loss.select(layers=[0])


def test_samples_and_conditions_are_chosen_by_name(written: Any) -> None:
    run = Run(written.path)
    assert [trace.condition for trace in run.select(conditions=["control"])] == ["control"]
    assert len(run.select(samples={"needle-64-0.50-s0"}, stages=["read"])) == 2
    with pytest.raises(UsageError, match="no unit has the condition 'treated'; there are baseline, control"):
        run.select(conditions=["treated"])
    with pytest.raises(UsageError, match="a collection of names"):
        run.select(samples="needle-64-0.50-s0")


def test_sums_of_traces_are_what_their_prompts_give_together(model: Any) -> None:
    traces = [made(model, length, seed) for seed, length in enumerate((65, 129, 100))]
    merged = probe.merge(traces)
    for name in ("distance_histogram", "received_mass", "received_mass_num_queries"):
        wanted = np.zeros(max(trace[name].shape for trace in traces))
        for trace in traces:
            wanted[tuple(map(slice, trace[name].shape))] += trace[name].values
        np.testing.assert_allclose(merged[name].values, wanted, rtol=1e-6)
    # Every query's mass is 1, whatever it was merged with.
    total = sum(trace.num_queries for trace in traces)
    np.testing.assert_allclose(merged["distance_histogram"].sum("distance_bin").values, total, rtol=1e-5)
    assert merged["received_mass"]["key"].values.tolist() == list(range(129))
    assert merged["received_mass_num_queries"].values[0, 0] == total
    assert merged.attrs["num_traces"] == 3
    refused = dict(each.split(": ", 1) for each in merged.attrs["not_merged"])
    assert set(refused) == {"entropy", "key_norm", "loss"}
    assert "its axis 'query'" in refused["entropy"]


def test_maps_of_equal_blocks_are_the_mean_over_all_queries_of_a_cell(model: Any) -> None:
    request = [{"attention_map": {"grid": 8}}]
    traces = [made(model, length, seed, request) for seed, length in enumerate((65, 97, 128))]
    merged = probe.merge(traces, ["attention_map_grid_8", "attention_map_grid_8_max"])
    wanted, largest, count = np.zeros((3, 4, 8, 8)), np.zeros((3, 4, 8, 8)), np.zeros(8)
    for trace in traces:
        cells = trace["attention_map_grid_8"].values
        rows = np.bincount(np.arange(trace.num_queries) // 16)
        wanted[..., : cells.shape[2], : cells.shape[3]] += cells * rows[:, None]
        count[: len(rows)] += rows
        part = largest[..., : cells.shape[2], : cells.shape[3]]
        np.maximum(part, trace["attention_map_grid_8_max"].values, out=part)
    np.testing.assert_allclose(merged["attention_map_grid_8"].values, wanted / count[:, None], atol=1e-6)
    np.testing.assert_array_equal(merged["attention_map_grid_8_max"].values, largest.astype(np.float32))
    np.testing.assert_allclose(merged["attention_map_grid_8"].sum("key_block_16").values, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("entropy", {}, "its axis 'query' is one prompt's own"),
        ("key_norm", {}, "its parts combine by 'concatenate'"),
        ("loss", {}, "its axis 'token'"),
        ("attention_map", {}, "blocks have different sizes"),
        ("received_mass", {"pool_tokens": 8}, "pooled over blocks"),
        ("received_mass_max", {"pool_tokens": 8}, "largest of a block's sums"),
        ("nothing", {}, "lacks it"),
    ],
)
def test_what_does_not_merge_exactly_is_refused_by_name(
    model: Any, name: str, options: dict[str, Any], said: str
) -> None:
    traces = [made(model, 65, **options), made(model, 300, 1, **options)]
    with pytest.raises(UsageError, match=f"'{name}' does not merge exactly: .*{said}"):
        probe.merge(traces, [name])


def test_pooled_sums_of_prompts_of_one_length_merge(model: Any) -> None:
    traces = [made(model, 65, seed, pool_tokens=8) for seed in range(2)]
    wanted = sum(trace["received_mass"].values.astype(np.float64) for trace in traces)
    np.testing.assert_allclose(probe.merge(traces)["received_mass"].values, wanted, rtol=1e-6)


def test_traces_of_different_models_and_none_at_all_are_refused(model: Any) -> None:
    torch.manual_seed(1)
    other = probe.load(AutoModelForCausalLM.from_config(model.hf.config))
    with pytest.raises(UsageError, match="differ in weights_sha256"):
        probe.merge([made(model, 9), made(other, 9)])
    with pytest.raises(UsageError, match="nothing to merge"):
        probe.merge([])


def test_a_trace_of_format_1_is_cut_and_merged_like_any_other() -> None:
    old = probe.open(Path(__file__).parent / "data" / "format_1")
    assert isinstance(old, Trace)
    assert old.select(positions=slice(5, 9))["query_block"].values.tolist() == [4, 8]
    merged = probe.merge([old, old], ["attention_map_grid_16"])
    np.testing.assert_allclose(merged["attention_map_grid_16"].values, old["attention_map_grid_16"].values, atol=1e-6)

"""Coarser levels of an attention map are what the map of that block size would be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probe.errors import MissingStatistic
from probe.sample import Sample
from probe.storage.array import Array
from probe.storage.store import MemoryStore
from probe.storage.unit_trace import Trace

LENGTH = 101


def probabilities(heads: int = 3) -> np.ndarray[Any, Any]:
    logits = np.random.default_rng(0).normal(size=(heads, LENGTH, LENGTH)) * 2
    weights = np.exp(logits) * np.tril(np.ones((LENGTH, LENGTH)))
    weights /= weights.sum(-1, keepdims=True)
    return weights


def cells(p: np.ndarray[Any, Any], tokens: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the mean over a cell's queries of the sum over its keys, and its largest entry, by definition."""
    starts = range(0, LENGTH, tokens)
    blocks = [[p[:, i : i + tokens, j : j + tokens] for j in starts] for i in starts]
    mean = [[block.sum(2).mean(1) for block in row] for row in blocks]
    largest = [[block.max((1, 2)) for block in row] for row in blocks]
    return np.moveaxis(np.array(mean), -1, 0), np.moveaxis(np.array(largest), -1, 0)


def maps(p: np.ndarray[Any, Any], tokens: int, name: str) -> dict[str, Array]:
    mean, largest = cells(p, tokens)
    dims = ("head", "query_block", "key_block")
    starts = {dim: np.arange(mean.shape[1]) * tokens for dim in dims[1:]}
    return {
        name: Array(dims, mean.astype(np.float32), coordinates=starts, block_tokens=tokens),
        f"{name}_max": Array(dims, largest.astype(np.float32), coordinates=starts, block_tokens=tokens),
    }


@pytest.fixture(scope="module")
def trace() -> Trace:
    p, store = probabilities(), MemoryStore()
    with store.begin_unit("u", sample=Sample("s", tuple(range(LENGTH)))) as writer:
        writer.write_layer(2, maps(p, 16, "attention_map"))
        writer.write_layer(0, maps(p[:2], 16, "attention_map"))
        chunks = {"query_block": 8, "key_block": 8}
        writer.of_layer(2).write(maps(p, 2, "attention_map_grid_64"), chunks)
        writer.note(num_queries=LENGTH)
        writer.commit()
    return store.trace("u")


@pytest.mark.parametrize("level", range(7))
@pytest.mark.parametrize("head", range(3))
def test_every_level_is_the_map_of_its_block_size(trace: Trace, level: int, head: int) -> None:
    tokens = 2 << level
    made = trace.pyramid(2, head, level)
    mean, largest = cells(probabilities(), tokens)
    np.testing.assert_allclose(made["mean"].values, mean[head], rtol=0, atol=1e-6)
    np.testing.assert_allclose(made["max"].values, largest[head], rtol=0, atol=1e-6)
    assert made.attrs["block_tokens"] == tokens
    assert made["query_block"].values.tolist() == made["key_block"].values.tolist() == list(range(0, LENGTH, tokens))
    counts = [len(range(start, min(start + tokens, LENGTH))) for start in range(0, LENGTH, tokens)]
    assert made["num_queries"].values.tolist() == counts


@pytest.mark.parametrize("level", range(7))
@pytest.mark.parametrize("positions", [(0, 1), (17, 60), (96, 101), (0, 101)])
def test_a_part_of_a_level_is_a_part_of_the_whole(trace: Trace, level: int, positions: tuple[int, int]) -> None:
    tokens = 2 << level
    whole, part = trace.pyramid(2, 1, level), trace.pyramid(2, 1, level, queries=slice(*positions), keys=slice(40, 41))
    assert part["query_block"].values[0] == positions[0] // tokens * tokens
    assert part["query_block"].values[-1] == (positions[1] - 1) // tokens * tokens
    there = whole.sel(query_block=part["query_block"], key_block=part["key_block"])
    np.testing.assert_array_equal(part["mean"].values, there["mean"].values)
    np.testing.assert_array_equal(part["max"].values, there["max"].values)


def test_a_layer_without_a_finer_map_begins_at_the_coarse_one(trace: Trace) -> None:
    assert trace.levels(2) == (2, 4, 8, 16, 32, 64, 128)
    assert trace.levels(0) == (16, 32, 64, 128)
    np.testing.assert_allclose(trace.pyramid(0, 1, 0)["mean"].values, cells(probabilities(), 16)[0][1], atol=1e-6)


def test_a_part_of_the_finest_level_reads_its_own_chunks(trace: Trace) -> None:
    asked: list[str] = []
    read = trace._files.read
    try:
        trace._files.read = lambda path: asked.append(path) or read(path)  # type: ignore[func-returns-value,method-assign]
        trace.pyramid(2, 0, 0, queries=slice(32, 48), keys=slice(16, 32))
    finally:
        trace._files.read = read  # type: ignore[method-assign]
    assert sum("attention_map" in path and "/c/" in path for path in asked) == 2


def test_what_is_not_there_is_named(trace: Trace) -> None:
    with pytest.raises(IndexError, match="no level 7; its levels are 0 to 6"):
        trace.pyramid(2, 0, 7)
    with pytest.raises(IndexError, match="no head 2; its heads are 0 to 1"):
        trace.pyramid(0, 2, 0)
    with pytest.raises(IndexError, match=r"valid positions are 0:102"):
        trace.pyramid(2, 0, 0, keys=slice(50, 200))
    with pytest.raises(MissingStatistic, match="no attention map of layer 1"):
        trace.pyramid(1, 0, 0)
    with pytest.raises(MissingStatistic, match="no attention map of layer 5"):
        trace.levels(5)

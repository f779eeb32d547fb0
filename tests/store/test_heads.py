"""Which heads there are is known without reading a statistic."""

from __future__ import annotations

import numpy as np
import pytest

from probe.sample import Sample
from probe.storage.array import Array
from probe.storage.store import MemoryStore


def of(num_heads: int, dims: tuple[str, ...] = ("head", "query")) -> Array:
    return Array(dims, np.zeros((num_heads, *(3 for _ in dims[1:]))))


def test_layers_may_differ_and_lie_apart() -> None:
    store = MemoryStore()
    with store.begin_unit("u", sample=Sample("s", (1, 2, 3)), layers=[2, 5, 7]) as writer:
        writer.write_layer(5, {"entropy": of(4)})
        writer.write_layer(2, {"entropy": of(2)})
        writer.of_layer(9).write({"log_sum_exp": of(6)})
        writer.commit()
    assert store.trace("u").heads == {2: 2, 5: 4, 9: 6}


@pytest.mark.parametrize("num_heads", [1, 16])
def test_a_layer_of_its_own_alone_is_one(num_heads: int) -> None:
    store = MemoryStore()
    with store.begin_unit("u", sample=Sample("s", (1, 2, 3))) as writer:
        writer.of_layer(0).write({"log_sum_exp": of(num_heads)})
        writer.commit()
    assert store.trace("u").heads == {0: num_heads}


def test_where_nothing_is_by_head_there_are_none() -> None:
    store = MemoryStore()
    with store.begin_unit("u", sample=Sample("s", (1, 2, 3))) as writer:
        writer.write({"loss": Array(("token",), np.zeros(3))})
        writer.commit()
    assert store.trace("u").heads == {}

"""A trace of an earlier format opens, and is what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import probe
from probe.storage.trace_store import Trace

FORMAT_1 = Path(__file__).parent / "data" / "format_1"
"""Saved by the code of format 1: 40 tokens, 2 layers of 4 heads, 2 decoded, pooled over blocks of 4."""


@pytest.fixture
def old() -> Trace:
    trace = probe.open(FORMAT_1)
    assert isinstance(trace, Trace)
    return trace


def test_a_trace_of_format_1_opens_with_the_numbers_that_it_had(old: Trace) -> None:
    assert old.verify() == []
    assert (len(old.sample), old.outcome is not None and old.outcome.response_tokens) == (40, (23, 53))
    assert old["entropy"].sizes == {"layer": 2, "head": 4, "query_block": 11}
    assert old["entropy"]["query_block"].values.tolist() == list(range(0, 44, 4))
    # As read by the code that wrote it.
    np.testing.assert_allclose(
        old["loss"].values[:3], [4.174469470977783, 4.160369396209717, 4.182584762573242], rtol=1e-6
    )
    np.testing.assert_allclose(old["entropy"].values.sum(dtype=np.float64), 250.34259021282196, rtol=1e-6)


def test_what_format_1_did_not_say_is_made_up_for(old: Trace) -> None:
    assert old.num_queries == 41
    assert (old.kept_layers, old.non_finite, old.private) == ({}, [], False)
    assert old.levels(1) == (4, 8, 16, 32, 64)
    stored, made = old["attention_map_grid_16"].values[1, 2], old.pyramid(1, 2, 0)
    np.testing.assert_array_equal(made["mean"].values, stored)
    # The last row of blocks holds the one query of position 40, and every query attends with a mass of 1.
    assert made["num_queries"].values.tolist() == [4] * 10 + [1]
    np.testing.assert_allclose(old.pyramid(1, 2, 4)["mean"].values, 1, atol=1e-5)


def test_it_is_saved_again_as_what_it_is(old: Trace, tmp_path: Path) -> None:
    again = probe.open(old.save(tmp_path / "again"))
    assert isinstance(again, Trace)
    assert again.dataset.identical(old.dataset)
    assert again.num_queries == old.num_queries

"""What the prompt's last queries give each key, however the prompt came in chunks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from probe.errors import UsageError
from probe.kernels.scan import Scan
from probe.kernels.statistic import parse


@pytest.mark.parametrize("window", [1, 5, 32, 200])
@pytest.mark.parametrize("cuts", [(0, 99), (0, 40, 97, 99), (0, 1, 2, 99)])
def test_it_is_the_sum_over_the_last_rows_in_any_chunks(attention, shape, window, cuts):
    if not shape.causal:
        pytest.skip("a bidirectional layer decodes nothing")
    call = attention.make_call(shape, 102)
    scan = Scan([{"window_mass": {"window": window}}])
    for first, stop in pairwise(cuts):
        scan.update(attention.cut(call, first, stop, phase="prefill"))
    for row in range(99, 102):
        scan.update(attention.cut(call, row, row + 1))
    found = {name: result.values.numpy() for name, result in scan.finish().items()}
    p = attention.probabilities(call)[0]
    name = parse({"window_mass": {"window": window}}).key
    np.testing.assert_allclose(found[name], p[:, max(0, 100 - window) : 100].sum(1), atol=1e-5)
    assert (found[f"{name}_num_queries"] == min(window, 100)).all()


def test_queries_whose_keys_a_sliding_cache_dropped_do_not_count(attention):
    call = attention.make_call(attention.Shape(kv_head=2, window=20), 61)
    scan = Scan([{"window_mass": {"window": 8}}])
    scan.update(attention.cut(call, 0, 60, phase="prefill"))
    # The cache holds three keys more than the last query sees.
    scan.update(attention.cut(call, 60, 61, keep=22))
    found = {name: result.values.numpy() for name, result in scan.finish().items()}
    p = attention.probabilities(call)[0]
    assert (found["window_mass_window_8_num_queries"] == 4).all()
    np.testing.assert_allclose(found["window_mass_window_8"], p[:, 57:61].sum(1), atol=1e-5)


def test_a_prompt_that_is_not_asked_gives_nothing(attention):
    call = attention.make_call(attention.Shape(), 20)
    scan = Scan(["window_mass"])
    scan.update(attention.cut(call, 0, 20, phase="prefill"))
    assert not scan.finish()
    with pytest.raises(UsageError, match="window is at least 1"):
        parse({"window_mass": {"window": 0}})


def test_pooled_over_blocks_it_keeps_its_count_of_queries(attention):
    call = attention.make_call(attention.Shape(), 41)
    scan = Scan(["window_mass"], pool_tokens=8)
    scan.update(attention.cut(call, 0, 40, phase="prefill"))
    scan.update(attention.cut(call, 40, 41))
    found = scan.finish()
    assert found["window_mass"].values.shape == (4, 6)
    assert found["window_mass_num_queries"].values.tolist() == [32] * 4
    p = attention.probabilities(call)[0][:, 9:41].sum(1)
    np.testing.assert_allclose(found["window_mass"].values[:, :5], p[:, :40].reshape(4, 5, 8).mean(-1), atol=1e-5)

"""What a scan hands over while a prompt goes through it is, end to end, what it would have given at the end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.kernels.scan import Scan
from probe.kernels.token_scan import TokenScan

LENGTH = 70


def joined(parts, whole):
    """Join what was handed over along the axis that each array grows along, as a trace does."""
    dims, values = whole.dims, [part.values.numpy() for part in parts]
    return np.concatenate(values, dims.index(whole.grows_along))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.sets(st.integers(1, LENGTH - 1), max_size=6),
    drained=st.sets(st.integers(0, 6)),
    pool_tokens=st.sampled_from([None, 4, 16, 100]),
    start=st.sampled_from([0, 6]),
)
def test_drained_parts_join_to_the_bits_of_the_undrained_result(attention, cuts, drained, pool_tokens, start):
    call = attention.make_call(attention.Shape(kv_head=2), LENGTH, key_start=start)
    whole, scan = (Scan(attention.REQUESTS, pool_tokens=pool_tokens) for _ in range(2))
    parts: dict[str, list] = {}
    for number, (first, stop) in enumerate(itertools.pairwise(sorted({0, *cuts, LENGTH}))):
        chunk = attention.cut(call, first, stop, phase="decode" if stop == LENGTH else "prefill")
        whole.update(chunk)
        scan.update(chunk)
        if number in drained:
            for name, result in scan.drain().items():
                assert result.grows_along in result.dims
                parts.setdefault(name, []).append(result)
    wanted = whole.finish()
    for name, result in scan.finish().items():
        parts.setdefault(name, []).append(result)
    assert set(parts) == set(wanted)
    for name, result in wanted.items():
        if result.grows_along is None:
            (only,) = parts[name]
            torch.testing.assert_close(only.values, result.values, rtol=0, atol=0, equal_nan=True)
            continue
        np.testing.assert_array_equal(joined(parts[name], result), result.values.numpy(), err_msg=name)
        axis = result.grows_along
        coordinates = np.concatenate([part.coordinates[axis] for part in parts[name]])
        np.testing.assert_array_equal(coordinates, result.coordinates[axis], err_msg=name)
        assert {part.block_tokens for part in parts[name]} == {result.block_tokens}


def test_what_was_drained_is_kept_no_longer(attention):
    scan = Scan(["entropy", "key_norm"], pool_tokens=16)
    call = attention.make_call(attention.Shape(), LENGTH)
    scan.update(attention.cut(call, 0, 40))
    first = scan.drain()
    assert first["entropy"].values.shape[-1] == 40 // 16
    assert first["entropy"].block_tokens == 16
    assert scan.drain() == {}
    scan.update(attention.cut(call, 40, LENGTH))
    rest = scan.finish()["entropy"]
    assert rest.coordinates["query_block"].tolist() == [32, 48, 64]


@pytest.mark.parametrize("pool_tokens", [None, 8])
def test_a_token_scan_drains_alike(pool_tokens):
    chunks = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (9, 1, 20, 3)]
    requests = ["residual_norm", "residual_max"]
    whole, scan = (TokenScan(requests, token_start=1, pool_tokens=pool_tokens) for _ in range(2))
    parts: dict[str, list] = {}
    for chunk in chunks:
        whole.update(chunk)
        scan.update(chunk)
        for name, result in scan.drain().items():
            parts.setdefault(name, []).append(result)
    for name, result in scan.finish().items():
        parts.setdefault(name, []).append(result)
    for name, result in whole.finish().items():
        np.testing.assert_array_equal(joined(parts[name], result), result.values.numpy(), err_msg=name)

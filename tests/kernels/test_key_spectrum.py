"""The spectrum of keys is that of what was planted, of random matrices, and of nothing but rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.keys import BLOCK_KEYS
from probe.kernels.scan import Scan
from probe.kernels.statistic import parse


def of_key(key):
    key = torch.as_tensor(key, dtype=torch.float32)
    return Call(0, torch.zeros_like(key), key, key, 1.0)


def scanned(call, *requests, **options):
    scan = Scan(requests, **options)
    scan.update(call)
    return {name: result.values.numpy() for name, result in scan.finish().items()}


def test_keys_of_rank_three_have_rank_three():
    basis = torch.linalg.qr(torch.randn(64, 3, generator=torch.Generator().manual_seed(0))).Q
    # Each key is one of three orthogonal directions in turn, of length 2, 2 and 2; the second head has 4, 2 and 1.
    pattern = torch.eye(3).repeat(100, 1)
    key = torch.stack([pattern @ (basis * 2).T, pattern @ (basis * torch.tensor([4.0, 2.0, 1.0])).T])
    got = scanned(of_key(key), "key_spectrum")
    lengths = np.array([[2, 2, 2], [4, 2, 1]]) / np.sqrt(3)
    np.testing.assert_allclose(got["key_spectrum"][:, :3], lengths, rtol=1e-5)
    np.testing.assert_allclose(got["key_spectrum"][:, 3:], 0, atol=1e-5)
    share = np.array([16, 4, 1]) / 21
    np.testing.assert_allclose(
        got["key_spectrum_effective_rank"], [3, np.exp(-(share * np.log(share)).sum())], rtol=1e-4
    )
    np.testing.assert_allclose(got["key_spectrum_participation_ratio"], [3, 1 / (share**2).sum()], rtol=1e-4)
    # Three points lie in a plane: less their mean, two directions are left.
    np.testing.assert_allclose(got["key_spectrum_centred_effective_rank"][0], 2, rtol=1e-4)


@pytest.mark.parametrize(("length", "channel"), [(2000, 64), (500, 60), (200, 128)])
def test_random_keys_have_the_spectrum_of_a_random_matrix(length, channel):
    key = torch.randn(8, length, channel, generator=torch.Generator().manual_seed(1))
    got = scanned(of_key(key), "key_spectrum", "key_neighbour_similarity")
    # Marchenko and Pastur: Σλ²/d = 1 + d/n; Page: the entropy of λ/d is ln d − d/2n.
    ratio = channel / length
    for centred in ("", "_centred"):
        participation = got[f"key_spectrum{centred}_participation_ratio"].mean()
        np.testing.assert_allclose(participation, channel / (1 + ratio), rtol=0.03)
        effective = got[f"key_spectrum{centred}_effective_rank"].mean()
        np.testing.assert_allclose(effective, channel * np.exp(-ratio / 2), rtol=0.03)
    # The cosine of independent directions has mean 0 and variance 1/d.
    neighbour = got["key_neighbour_similarity"][:, 1:]
    assert abs(neighbour.mean()) < 5 / np.sqrt(channel * neighbour.size)
    np.testing.assert_allclose(neighbour.var(), 1 / channel, rtol=0.15)


def test_a_common_mean_is_one_direction_and_leaves_with_it():
    noise = torch.randn(1, 1000, 16, generator=torch.Generator().manual_seed(2))
    got = scanned(of_key(noise + 1000), "key_spectrum", "key_neighbour_similarity")
    np.testing.assert_allclose(got["key_spectrum"][0, 0], 4000, rtol=1e-3)
    assert got["key_spectrum_effective_rank"][0] < 1.001
    assert 15 < got["key_spectrum_centred_effective_rank"][0] <= 16
    assert got["key_neighbour_similarity"][0, 1:].min() > 0.9999


@pytest.mark.parametrize("length", [1, 2, 50])
def test_equal_keys_are_one_direction_and_nothing_less_their_mean(length):
    key = torch.full((2, length, 60), 0.1)
    key[1] = 0
    got = scanned(of_key(key), "key_spectrum", "key_neighbour_similarity")
    np.testing.assert_allclose(got["key_spectrum_effective_rank"], [1, 0], rtol=1e-6)
    np.testing.assert_allclose(got["key_spectrum_participation_ratio"], [1, 0], rtol=1e-6)
    assert (got["key_spectrum_centred"] == 0).all()
    assert (got["key_spectrum_centred_effective_rank"] == 0).all()
    if length > 1:
        np.testing.assert_allclose(got["key_neighbour_similarity"][0, 1:], 1, rtol=1e-6)
        assert (got["key_neighbour_similarity"][1, 1:] == 0).all()
        assert np.isnan(got["key_neighbour_similarity"][:, 0]).all()
    else:
        assert "key_neighbour_similarity" not in got


def test_the_rounding_of_equal_keys_is_no_direction():
    one = torch.randn(4, 1, 60, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    key = one.expand(4, 51, 60)
    assert (key - key.mean(1, keepdim=True)).abs().max() > 0
    got = scanned(Call(0, key, key, key, 1.0), "key_spectrum")
    assert (got["key_spectrum_centred_effective_rank"] == 0).all()
    np.testing.assert_allclose(got["key_spectrum_effective_rank"], 1, rtol=1e-6)
    reference = parse("key_spectrum").reference(Dense(Call(0, key, key, key, 1.0)))
    assert (reference["centred_effective_rank"] == 0).all()


def test_the_spectrum_of_a_long_cache_is_that_of_its_moments_in_float64():
    # Small components beside large ones: what a float32 sum of squares loses.
    scale = 10.0 ** -torch.arange(6)
    key = torch.randn(1, BLOCK_KEYS + 77, 6, generator=torch.Generator().manual_seed(3)) * scale
    wanted = np.linalg.svd(key[0].double().numpy(), compute_uv=False) / np.sqrt(key.shape[1])
    np.testing.assert_allclose(scanned(of_key(key), "key_spectrum")["key_spectrum"][0], wanted, rtol=1e-5)

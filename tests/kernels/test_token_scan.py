"""Statistics of the residual stream and of the logits equal numpy, however the tokens come in chunks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from probe.kernels.token_scan import TokenScan

EDGES = [(0, 33), (0, 1, 2, 20, 33), tuple(range(34))]


@pytest.mark.parametrize("edges", EDGES, ids=["whole", "chunks", "single"])
@pytest.mark.parametrize("channel", [1, 2, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_residual_statistics_equal_numpy(attention, edges, channel, dtype):
    hidden = torch.randn(33, channel, generator=torch.Generator().manual_seed(0)).to(dtype)
    scan = TokenScan(["residual_norm", "residual_max", "residual_median"])
    for first, stop in itertools.pairwise(edges):
        scan.update(hidden[first:stop])
    actual, size = scan.finish(), np.abs(hidden.double().numpy())
    attention.assert_close("norm", actual["residual_norm"].values.numpy(), np.sqrt((size**2).sum(1)))
    attention.assert_close("max", actual["residual_max"].values.numpy(), size.max(1))
    attention.assert_close("median", actual["residual_median"].values.numpy(), np.median(size, axis=1))
    assert (actual["residual_max_channel"].values.numpy() == size.argmax(1)).all()
    assert actual["residual_norm"].dims == ("token",)
    assert (actual["residual_norm"].coordinates["token"] == np.arange(33)).all()


@pytest.mark.parametrize("edges", EDGES, ids=["whole", "chunks", "single"])
def test_loss_equals_numpy(attention, edges, monkeypatch):
    monkeypatch.setattr("probe.kernels.loss.CHUNK_ELEMENTS", 500)
    random = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(33, 101, generator=random) * 3, torch.randint(0, 101, (33,), generator=random)
    scan = TokenScan(["loss"], token_start=1)
    for first, stop in itertools.pairwise(edges):
        scan.update(logits[first:stop], targets[first:stop])
    result, x = scan.finish()["loss"], logits.double().numpy()
    wanted = np.log(np.exp(x).sum(1)) - x[np.arange(33), targets.numpy()]
    attention.assert_close("loss", result.values.numpy(), wanted)
    assert result.coordinates["token"][0] == 1


def test_uniform_logits_lose_the_logarithm_of_the_vocabulary():
    scan = TokenScan(["loss"])
    scan.update(torch.zeros(3, 50), torch.tensor([0, 7, 49]))
    np.testing.assert_allclose(scan.finish()["loss"].values, np.log(50), rtol=1e-6)


@pytest.mark.parametrize("edges", EDGES, ids=["whole", "chunks", "single"])
def test_pooling_keeps_the_channel_of_the_largest(edges):
    hidden = torch.zeros(33, 5)
    hidden[9, 3] = -100.0
    scan = TokenScan(["residual_max"], pool_tokens=8)
    for first, stop in itertools.pairwise(edges):
        scan.update(hidden[first:stop])
    actual = scan.finish()
    assert actual["residual_max"].dims == ("token_block",)
    assert actual["residual_max_max"].values.tolist() == [0, 100, 0, 0, 0]
    assert actual["residual_max"].values.tolist() == [0, 12.5, 0, 0, 0]
    assert actual["residual_max_channel"].values[1] == 3


@pytest.mark.parametrize("name", ["residual_norm", "residual_max", "residual_median"])
def test_a_nan_in_the_residual_stream_is_visible(name):
    hidden = torch.ones(4, 10)
    hidden[2, 5] = torch.nan
    scan = TokenScan([name])
    scan.update(hidden)
    assert scan.finish()[name].values.isnan().tolist() == [False, False, True, False]


def test_a_statistic_of_attention_is_refused_by_name():
    with pytest.raises(ValueError, match="entropy"):
        TokenScan(["loss", "entropy"])

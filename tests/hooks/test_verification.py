"""A call is judged by all its keys, also where most of them need not be looked at for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from probe.hooks.attention import verification
from probe.hooks.attention.verification import recomputed
from probe.kernels.call import Call


def drawn(num_keys: int, num_queries: int, outlier: float) -> tuple[Call, Tensor]:
    """A call whose largest key and value stand where the sampled ones do not, and its output."""
    torch.manual_seed(num_keys)
    query = torch.randn(4, num_queries, 16)
    key, value = torch.randn(2, num_keys, 16), torch.randn(2, num_keys, 16)
    key[:, 7:8] *= outlier
    value[:, 7:8] *= outlier
    start = num_keys - num_queries
    logits = query @ key.repeat_interleave(2, dim=0).mT * 0.25
    logits = logits.masked_fill(~torch.ones(num_queries, num_keys, dtype=torch.bool).tril(start), -torch.inf)
    output = (logits.softmax(dim=-1) @ value.repeat_interleave(2, dim=0)).transpose(0, 1)
    return Call(0, query, key, value, 0.25, query_start=start, log_sum_exp=logits.logsumexp(dim=-1)), output


@pytest.mark.parametrize("num_keys", [1, 40, 512, 3000])
@pytest.mark.parametrize("num_queries", [1, 5])
@pytest.mark.parametrize("outlier", [1.0, 50.0])
def test_a_right_call_is_within_its_allowance(num_keys: int, num_queries: int, outlier: float) -> None:
    found = recomputed(*drawn(max(num_keys, num_queries), num_queries, outlier))
    assert found.output <= found.output_allowed
    assert found.log_sum_exp <= found.log_sum_exp_allowed
    assert found.finite


@pytest.mark.parametrize("outlier", [1.0, 50.0])
@pytest.mark.parametrize("share", [0.5, 0.95, 1.05, 2.0])
def test_a_call_is_judged_as_all_its_keys_judge_it(outlier: float, share: float) -> None:
    call, output = drawn(3000, 5, outlier)
    output[4, 1, 3] += share * verification._compared(call, output, 1).output_allowed
    found, by_all = recomputed(call, output), verification._compared(call, output, 1)
    wrong = found.output > found.output_allowed
    assert wrong == (by_all.output > by_all.output_allowed)
    if share in (0.5, 2.0):
        assert wrong == (share == 2.0)


@pytest.mark.parametrize("which", ["key", "query"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_seen_wherever_it_stands(which: str, bad: float) -> None:
    call, output = drawn(3000, 5, 1.0)
    getattr(call, which)[1, 3, 5] = bad
    assert not recomputed(call, output).finite


@pytest.mark.parametrize("seed", [1, 4, 5])
def test_the_rounding_of_a_sum_over_many_repeated_tokens_is_allowed(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 61, (16_384,), generator=random)
    key, value = (torch.randn(8, 61, 8, generator=random)[:, words] for _ in range(2))
    query = torch.randn(8, 4, 8, generator=random) / 2
    call = Call(0, query, key, value, scale=1.0, causal=False)
    mask = torch.zeros(1, 1, 4, 16_384)
    batch = query[None], key[None], value[None]
    output = torch.nn.functional.scaled_dot_product_attention(*batch, mask, scale=1.0)[0].transpose(0, 1)
    exact = (query.double() @ key.double().transpose(1, 2)).softmax(-1) @ value.double()
    assert (output - exact.transpose(0, 1)).abs().max() < 1e-4
    off = recomputed(call, output)
    assert off.output <= off.output_allowed
    # A hundredth of one value more than there should be still shows.
    missed = (query @ key[:, 1:].transpose(1, 2)).softmax(-1) @ value[:, 1:] + value[:, :1] / 100
    off = recomputed(call, missed.transpose(0, 1))
    assert off.output > off.output_allowed

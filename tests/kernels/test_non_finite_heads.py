"""NaN and infinity in queries and keys are counted and located, and the other heads' statistics are what they were."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.non_finite_heads import NonFiniteHead, NonFiniteHeads, in_words
from probe.kernels.scan import Scan

STATISTICS: list[Any] = [
    "log_sum_exp", "entropy", "max_probability", "max_logit", "sink_mass", "recent_mass", "offset_mass",
    "mean_distance", "distance_histogram", "received_mass", "attention_map", "key_norm", "value_norm",
]  # fmt: skip


def drawn(num_tokens: int = 40, dtype: torch.dtype = torch.float32) -> Call:
    torch.manual_seed(0)
    query, key, value = (torch.randn(heads, num_tokens, 8, dtype=dtype) for heads in (6, 3, 3))
    return Call(layer=2, query=query, key=key, value=value, scale=0.35)


def in_chunks(call: Call, sizes: list[int], dropped: int = 0) -> list[Call]:
    """The call as a prompt in chunks, whose cache drops its first keys from the second chunk on."""
    found, start = [], 0
    for size in sizes:
        first = dropped if start else 0
        part = {"query": call.query[:, start : start + size], "query_start": start, "key_start": first}
        rest = {name: getattr(call, name)[:, first : start + size] for name in ("key", "value")}
        found.append(replace(call, **part, **rest))
        start += size
    return found


def seen(calls: list[Call]) -> tuple[NonFiniteHead, ...]:
    heads = NonFiniteHeads()
    for call in calls:
        heads.update(call)
    return heads.found


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [[40], [1, 39], [15, 15, 10], [39, 1]])
@pytest.mark.parametrize("dropped", [0, 3])
def test_planted_values_are_counted_once_and_located(
    bad: float, dtype: torch.dtype, sizes: list[int], dropped: int
) -> None:
    call = drawn(dtype=dtype)
    call.query[4, 17, 3] = bad
    call.query[4, 17, 5] = bad
    call.query[4, 30] = bad
    call.query[0, 39, 7] = bad
    call.key[1, 9, 0] = bad
    assert seen(in_chunks(call, sizes, dropped)) == (
        NonFiniteHead(2, "query", 0, 1, 39),
        NonFiniteHead(2, "query", 4, 10, 17),
        NonFiniteHead(2, "key", 1, 1, 9),
    )


def test_what_is_finite_is_no_finding_however_large() -> None:
    call = drawn()
    call.query[0] = 3e38
    call.key[0] = -3e38
    assert seen([call]) == ()
    assert in_words(seen([call])) == ""


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("engine", ["blocked", "reference"])
@pytest.mark.parametrize(("side", "head", "spoiled"), [("query", 3, [3]), ("key", 2, [4, 5])])
def test_the_other_heads_statistics_are_what_they_were(
    bad: float, engine: Any, side: str, head: int, spoiled: list[int]
) -> None:
    def scanned(call: Call) -> dict[str, Tensor]:
        scan = Scan(STATISTICS, engine=engine)
        for part in in_chunks(call, [15, 25]):
            scan.update(part)
        return {name: result.values for name, result in scan.finish().items()}

    call, planted = drawn(), drawn()
    getattr(planted, side)[head, 11, 3] = bad
    expected, found = scanned(call), scanned(planted)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        num_heads = len(values)
        group = [head] if num_heads == 3 else spoiled
        intact = [each for each in range(num_heads) if each not in group] if num_heads in (3, 6) else slice(None)
        torch.testing.assert_close(found[name][intact], values[intact], rtol=0, atol=0, equal_nan=True)


def test_the_first_layer_is_named_and_those_after_it_counted() -> None:
    call = drawn()
    call.query[:5, 7] = math.nan
    call.key[0, 3, 1] = math.inf
    found = [*seen([call]), *seen([replace(call, layer=5)]), *seen([replace(call, layer=3)])]
    assert in_words(found) == (
        "NaN or infinity in layer 2: query head 0 (8 values of its queries, first at position 7), query head 1 (8 "
        "values of its queries, first at position 7), query head 2 (8 values of its queries, first at position 7), "
        "query head 3 (8 values of its queries, first at position 7), 2 more; and heads of 2 layers after it"
    )
    assert in_words(seen([call])[-1:]) == (
        "NaN or infinity in layer 2: key-value head 0 (1 value of its keys, first at position 3)"
    )

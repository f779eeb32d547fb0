"""Any window of a head whose queries and keys were kept comes back exactly, from few chunks; coarser maps add up."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probe.errors import MissingStatistic, UsageError
from probe.kept_vectors import KeptVectors
from probe.kernels.call import Call
from probe.kernels.scan import Scan
from probe.sample import Sample
from probe.storage.array import Array
from probe.storage.store import MemoryStore, RunStore
from probe.storage.unit_trace import Trace
from probe.storage.window import MOST_TOKENS

NUM_HEADS, NUM_KV_HEADS, LENGTH = 4, 2, 150

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 20},
    "softcap": {"softcap": 3.0},
    "sink": {"sink_logit": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "alibi": {"alibi_slope": 2.0 ** -torch.arange(1.0, NUM_HEADS + 1)},
    "relative bias": {
        "distance_bias": torch.sin(torch.arange(NUM_HEADS * 30.0)).view(NUM_HEADS, 30),
        "distance_bias_start": -9,
        "causal": False,
    },
    "documents": {"document": torch.arange(LENGTH) // 37},
    "hidden": {"key_visible": torch.arange(LENGTH) % 3 != 2},
    "both ways": {"causal": False},
    "all": {"window": 40, "sink_logit": torch.ones(NUM_HEADS), "document": torch.arange(LENGTH) // 90},
}


def make_call(dtype: torch.dtype = torch.float32, channel: int = 12, length: int = LENGTH, **options: Any) -> Call:
    random = torch.Generator().manual_seed(0)
    query = 2 * torch.randn(NUM_HEADS, length, channel, generator=random)
    key, value = torch.randn(2, NUM_KV_HEADS, length, channel, generator=random)
    return Call(0, query.to(dtype), key.to(dtype), value.to(dtype), scale=channel**-0.5, **options)


def kept(call: Call, edges: tuple[int, ...], store: Any = None) -> Trace:
    """Return a trace of the call's queries and keys, which came cut at these edges."""
    store = MemoryStore() if store is None else store
    with store.begin_unit("u", sample=Sample("s", tuple(range(call.num_keys)))) as writer:
        vectors, scan = KeptVectors(writer.of_layer(0)), Scan(["queries_and_keys"])
        for first, stop in itertools.pairwise(edges):
            known = stop if call.causal else call.num_keys
            part = Call(
                0,
                call.query[:, first:stop],
                call.key[:, :known],
                call.value[:, :known],
                scale=call.scale,
                query_start=first,
                causal=call.causal,
                window=call.window,
                softcap=call.softcap,
                sink_logit=call.sink_logit,
                alibi_slope=call.alibi_slope,
                distance_bias=call.distance_bias,
                distance_bias_start=call.distance_bias_start,
                document=None if call.document is None else call.document[:known],
                key_visible=None if call.key_visible is None else call.key_visible[:known],
            )
            scan.update(part)
            vectors.take(part)
            for result in scan.drain().values():
                values = Array(result.dims, result.values.numpy(), coordinates=result.coordinates)
                writer.of_layer(0).append({"log_sum_exp": values}, "query")
        writer.note(attention={"0": vectors.facts}, num_queries=call.num_queries)
        writer.commit()
    trace: Trace = store.trace("u")
    return trace


def by_definition(call: Call, head: int) -> np.ndarray[Any, Any]:
    """Return p [query key] of one head in float64, with the mask spelt out pair by pair."""
    q, k = call.query[head].double().numpy(), call.key[head // (NUM_HEADS // NUM_KV_HEADS)].double().numpy()
    logits = q @ k.T * call.scale
    if call.softcap is not None:
        logits = call.softcap * np.tanh(logits / call.softcap)
    i, j = np.indices(logits.shape)
    if call.alibi_slope is not None:
        logits = logits - float(call.alibi_slope[head]) * np.abs(i - j)
    if call.distance_bias is not None:
        entry = np.clip(i - j - call.distance_bias_start, 0, call.distance_bias.shape[1] - 1)
        logits = logits + call.distance_bias[head].double().numpy()[entry]
    visible = np.ones(logits.shape, bool)
    if call.causal:
        visible &= j <= i
    if call.window is not None:
        visible &= (i - j < call.window) & (j - i < call.window)
    if call.document is not None:
        document = call.document.numpy()
        visible &= document[i] == document[j]
    if call.key_visible is not None:
        visible &= call.key_visible.numpy()[j]
    weights = np.exp(np.where(visible, logits, -np.inf))
    sink = 0.0 if call.sink_logit is None else np.exp(float(call.sink_logit[head]))
    total = weights.sum(1, keepdims=True) + sink
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


@pytest.mark.parametrize("edges", [(0, LENGTH), (0, 1, 64, 129, LENGTH)], ids=["at once", "in chunks"])
@pytest.mark.parametrize("feature", FEATURES)
def test_a_window_is_the_definition_whatever_the_mask(feature: str, edges: tuple[int, ...]) -> None:
    call = make_call(**FEATURES[feature])
    trace = kept(call, edges)
    for head in range(NUM_HEADS):
        wanted = by_definition(call, head)
        for rows, columns in ((slice(None), slice(None)), (slice(100, 131), slice(3, 120)), (slice(7, 8), slice(7, 8))):
            window = trace.window(0, head, queries=rows, keys=columns)
            assert window.dtype == np.float32
            np.testing.assert_allclose(window, wanted[rows, columns], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channel", [1, 80, 256])
def test_vectors_of_any_dtype_and_width_are_kept_to_the_bit(dtype: torch.dtype, channel: int) -> None:
    call = make_call(dtype, channel)
    trace = kept(call, (0, 70, LENGTH))
    window = trace.window(0, 3)
    np.testing.assert_allclose(window, by_definition(call, 3), rtol=0, atol=5e-6)
    stored = trace.layer(0)["key_vector"]
    bits = torch.from_numpy(stored.values)
    read = bits.view(torch.bfloat16) if dtype == torch.bfloat16 else bits
    assert stored.attrs.get("bits_of", "") == ("bfloat16" if dtype == torch.bfloat16 else "")
    assert torch.equal(read, call.key)


@pytest.mark.parametrize("length", [1, 15, 129])
def test_a_prompt_of_any_length_has_its_window(length: int) -> None:
    call = make_call(length=length)
    np.testing.assert_allclose(kept(call, (0, length)).window(0, 1), by_definition(call, 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        (slice(0, LENGTH + 1), slice(None)),
        (slice(None), slice(LENGTH, LENGTH + 1)),
        (slice(-1, None), slice(None)),
        (slice(9, 8), slice(None)),
        (slice(10**12, 10**12 + 1), slice(None)),
    ],
)
def test_a_window_outside_of_the_prompt_names_the_valid_range(queries: slice, keys: slice) -> None:
    with pytest.raises(IndexError, match=rf"valid positions are 0:{LENGTH}"):
        kept(make_call(), (0, LENGTH)).window(0, 0, queries=queries, keys=keys)


def test_what_was_not_kept_or_is_too_large_says_what_to_do() -> None:
    trace = kept(make_call(channel=1, length=MOST_TOKENS + 1), (0, MOST_TOKENS + 1))
    with pytest.raises(UsageError, match=r"at most 2,048 × 2,048.*pyramid"):
        trace.window(0, 0)
    with pytest.raises(UsageError, match=r"layer 3 were not kept \(those of layers 0 were\).*queries_and_keys=\[3\]"):
        trace.window(3, 0)
    with pytest.raises(IndexError, match="no head 4; its heads are 0 to 3"):
        trace.window(0, 4, queries=slice(0, 1), keys=slice(0, 1))
    with pytest.raises(UsageError, match="consecutive"):
        trace.window(0, 0, queries=slice(0, 9, 2))
    with pytest.raises(MissingStatistic, match="nothing was kept of layer 1 alone"):
        trace.layer(1)


def test_a_bad_query_or_key_spoils_its_row_or_column_and_no_more() -> None:
    call = make_call()
    call.query[1, 9], call.key[0, 30] = torch.nan, torch.inf
    window = kept(call, (0, LENGTH)).window(0, 1)
    assert not np.isfinite(window[9, :10]).any()
    assert np.isfinite(window[:9]).all()
    assert np.isfinite(window[10:30]).all()
    other = kept(call, (0, LENGTH)).window(0, 2)
    np.testing.assert_allclose(other, by_definition(call, 2), atol=2e-6)


def test_a_window_of_a_long_prompt_reads_a_few_chunks(tmp_path: Path) -> None:
    length, channel = 16_384, 64
    random = torch.Generator().manual_seed(0)
    query = torch.randn(2, length, channel, generator=random)
    call = Call(0, query, query[:1], query[:1], scale=0.1)
    with RunStore(tmp_path) as store:
        writer = store.begin_unit("u", sample=Sample("s", (1,)))
        vectors = KeptVectors(writer.of_layer(0))
        vectors.take(call)
        zeros = Array(("head", "query"), np.zeros((2, length), np.float32))
        writer.of_layer(0).append({"log_sum_exp": zeros}, "query")
        writer.note(attention={"0": vectors.facts})
        writer.commit()
        trace = store.trace("u")
    asked: dict[str, int] = {}
    read = trace._files.read

    def counted(path: str) -> bytes | None:
        data = read(path)
        asked[path] = len(data or b"")
        return data

    trace._files.read = counted  # type: ignore[method-assign]
    trace.window(0, 1, queries=slice(9_900, 10_156), keys=slice(5_000, 5_256))
    chunks = {path: size for path, size in asked.items() if "/c/" in path}
    assert len(chunks) <= 10
    assert sum(chunks.values()) < 4 * 2**20


_READS = """
import sys
import numpy as np
from probe.storage.trace_store import open as open_trace
trace = open_trace(sys.argv[1])
assert trace.window(0, 1, queries=slice(3, 9), keys=slice(0, 5)).shape == (6, 5)
print(sorted({"torch", "transformers", "xarray"} & set(sys.modules)))
"""


def test_reading_a_window_needs_neither_torch_nor_xarray(tmp_path: Path) -> None:
    path = kept(make_call(), (0, LENGTH)).save(tmp_path / "trace")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", _READS, str(path)], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"

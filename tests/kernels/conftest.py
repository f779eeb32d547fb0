"""An implementation of attention's statistics that shares nothing with the code under test: numpy, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from probe.kernels.call import Call
from probe.sample import Span

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Shape:
    """One kind of attention."""

    head: int = 4
    kv_head: int = 4
    channel: int = 16
    value_channel: int = 16
    window: int | None = None
    softcap: float | None = None
    sink: bool = False
    causal: bool = True
    sharpness: float = 1.0
    alibi: bool = False
    bias: tuple[int, int] | None = None
    """First distance of a bias by distance and the one after its last; distances beyond take the ends'."""
    part: str = "self"
    documents: int = 0
    hidden: bool = False


SHAPES = {
    "multi-head": Shape(),
    "grouped 4:1": Shape(head=8, kv_head=2),
    "multi-query": Shape(kv_head=1),
    "window": Shape(kv_head=2, window=16),
    "softcap": Shape(kv_head=2, softcap=5.0, sharpness=4.0),
    "learned sinks": Shape(kv_head=2, sink=True),
    "learned sinks and window": Shape(kv_head=2, sink=True, window=100),
    "head width 60": Shape(channel=60, value_channel=60),
    "values of another width": Shape(channel=24, value_channel=10),
    "bidirectional": Shape(kv_head=2, causal=False),
    "bidirectional window": Shape(kv_head=2, causal=False, window=20),
    "ALiBi": Shape(head=6, kv_head=2, alibi=True),
    "bidirectional ALiBi": Shape(causal=False, alibi=True),
    "bidirectional relative bias": Shape(causal=False, bias=(-20, 21)),
    "relative bias, window and hidden keys": Shape(head=6, kv_head=2, bias=(3, 33), window=40, hidden=True, sink=True),
    "packed documents": Shape(kv_head=2, documents=5),
    "bidirectional packed documents and window": Shape(kv_head=1, documents=3, causal=False, window=20),
    "hidden keys": Shape(kv_head=2, hidden=True),
    "everything hides keys": Shape(head=6, kv_head=2, hidden=True, documents=3, window=40, sink=True),
}


def make_call(shape: Shape, length: int, seed: int = 0, *, key_start: int = 0, num_queries: int | None = None) -> Call:
    """Return a random decode call over `length` keys whose last queries are asked; every query sees a key."""
    random = torch.Generator().manual_seed(seed)
    num_queries = length if num_queries is None else num_queries

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=random)

    return Call(
        layer=0,
        query=normal(shape.head, num_queries, shape.channel) * shape.sharpness,
        key=normal(shape.kv_head, length, shape.channel),
        value=normal(shape.kv_head, length, shape.value_channel),
        scale=shape.channel**-0.5,
        query_start=key_start + length - num_queries,
        key_start=key_start,
        causal=shape.causal,
        window=shape.window,
        softcap=shape.softcap,
        sink_logit=normal(shape.head) + 1 if shape.sink else None,
        phase="decode",
        tokens=torch.randint(0, 9, (length,), generator=random),
        alibi_slope=2.0 ** -torch.arange(1.0, shape.head + 1) if shape.alibi else None,
        distance_bias=None if shape.bias is None else normal(shape.head, shape.bias[1] - shape.bias[0]),
        distance_bias_start=0 if shape.bias is None else shape.bias[0],
        part=shape.part,
        document=torch.arange(length) * shape.documents // length if shape.documents else None,
        # Every third key but the first, at the awkward places too: the last of a block, a query's own.
        key_visible=torch.arange(length) % 3 != 2 if shape.hidden else None,
        logit_direction=normal(shape.head, num_queries, shape.value_channel),
    )


def make_spans(length: int, key_start: int = 0) -> tuple[Span, ...]:
    """Return three spans, one of them empty."""
    third = length // 3
    return (
        Span("needle", key_start + third, key_start + max(third + 1, 2 * third)),
        Span("question", key_start + length - 1, key_start + length),
        Span("nothing", key_start, key_start),
    )


def probabilities(call: Call) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return p [head, query, key], s, log Z [head, query] and the learned sink's share, row by row in float64."""
    query, key = call.query.double().numpy(), call.key.double().numpy()
    heads, queries, keys = len(query), query.shape[1], key.shape[1]
    p, s = np.zeros((heads, queries, keys)), np.full((heads, queries, keys), -np.inf)
    log_z, sink_share = np.full((heads, queries), -np.inf), np.zeros((heads, queries))
    position = call.key_start + np.arange(keys)
    for h in range(heads):
        k = key[h * len(key) // heads]
        for r in range(queries):
            i = call.query_start + r
            low = -np.inf if call.window is None else i - call.window
            high = i if call.causal else np.inf if call.window is None else i + call.window - 1
            seen = (low < position) & (position <= high)
            if call.document is not None:
                document = call.document.numpy()
                seen &= document == document[i - call.key_start]
            if call.key_visible is not None:
                seen &= call.key_visible.numpy()
            row = (k[seen] @ query[h, r]) * call.scale
            if call.softcap:
                row = call.softcap * np.tanh(row / call.softcap)
            if call.alibi_slope is not None:
                row = row - float(call.alibi_slope[h]) * abs(i - position[seen])
            if call.distance_bias is not None:
                bias = call.distance_bias[h].double().numpy()
                index = i - position[seen] - call.distance_bias_start
                row = row + bias[np.minimum(np.maximum(index, 0), len(bias) - 1)]
            s[h, r, seen] = row
            everything = row if call.sink_logit is None else np.append(row, float(call.sink_logit[h]))
            if everything.size:
                top = everything.max()
                log_z[h, r] = top + np.log(np.exp(everything - top).sum())
                p[h, r, seen] = np.exp(row - log_z[h, r])
                if call.sink_logit is not None:
                    sink_share[h, r] = np.exp(float(call.sink_logit[h]) - log_z[h, r])
    return p, s, log_z, sink_share


def expected(call: Call, spans: tuple[Span, ...] = ()) -> Arrays:
    """Return every statistic of an attention call at its default parameters, and a few at others, by array name."""
    p, s, log_z, sink_share = probabilities(call)
    heads, queries, keys = p.shape
    i = call.query_start + np.arange(queries)[:, None]
    j = call.key_start + np.arange(keys)[None, :]
    distance, seen = i - j, np.isfinite(s[0])
    tokens = np.zeros(keys) if call.tokens is None else call.tokens.numpy()
    token_of_query = np.array([tokens[x] if 0 <= x < keys else -2 for x in i[:, 0] - call.key_start])
    same = (token_of_query[:, None] == tokens[None, :]) & (distance > 0)
    before = np.concatenate([[-1], tokens[:-1]])
    follows = (token_of_query[:, None] == before[None, :]) & (distance >= 0)
    nothing = ~seen.any(1)
    out: Arrays = {
        "log_sum_exp": log_z,
        "queries_and_keys": log_z,
        "entropy": -(p * np.log(np.where(p > 0, p, 1))).sum(-1),
        "max_probability": p.max(-1),
        "argmax_key": np.where(nothing, -1, p.argmax(-1) + call.key_start),
        "max_logit": s.max(-1),
        "sink_mass": p[:, :, j[0] < 4].sum(-1),
        "sink_mass_num_sink_1": p[:, :, j[0] < 1].sum(-1),
        "recent_mass": (p * ((distance >= 0) & (distance < 64))).sum(-1),
        "recent_mass_recent_5": (p * ((distance >= 0) & (distance < 5))).sum(-1),
        "offset_mass": np.stack([(p * (distance == d)).sum((1, 2)) for d in range(128)], -1),
        "offset_mass_num_offset_2_others_7_500": np.stack(
            [(p * (distance == d)).sum((1, 2)) for d in (0, 1, 7, 500)], -1
        ),
        "match_mass": (p * same).sum(-1),
        "match_mass_by_induction": (p * follows).sum(-1),
        "mean_distance": (p * abs(distance)).sum(-1),
        "received_mass": p.sum(1),
        "received_mass_num_queries": seen.sum(0),
        "received_mass_horizon_64": p[:, i[:, 0] < 64].sum(1),
        "received_mass_horizon_64_num_queries": seen[i[:, 0] < 64].sum(0),
        "key_norm": np.sqrt((call.key.double().numpy() ** 2).sum(-1)),
        "value_norm": np.sqrt((call.value.double().numpy() ** 2).sum(-1)),
    }
    out |= of_keys(call)
    # Row 0 is the first decoding query, and these calls have no query before it.
    last = p[:, :1] if call.phase == "decode" else p[:, -32:]
    out["window_mass"], out["window_mass_num_queries"] = last.sum(1), np.full(heads, last.shape[1])
    if call.sink_logit is not None:
        out["sink_mass_learned"] = out["sink_mass_num_sink_1_learned"] = sink_share
    bins, low, high = [], 0, 1
    while low <= max(i.max(), j.max()):
        bins.append((p * ((abs(distance) >= low) & (abs(distance) < high))).sum((1, 2)))
        low, high = high, 2 * high
    out["distance_histogram"] = np.stack(bins, -1)
    for name, grid in (("attention_map", 256), ("attention_map_grid_8", 8)):
        size = 1
        while size * grid < max(i.max(), j.max()) + 1:
            size *= 2
        rows, columns = i[:, 0] // size, j[0] // size
        total = np.zeros((heads, rows.max() + 1, columns.max() + 1))
        largest, count = np.zeros_like(total), np.bincount(rows)
        for h in range(heads):
            np.add.at(total[h], np.ix_(rows, columns), p[h])
            np.maximum.at(largest[h], np.ix_(rows, columns), p[h])
        out[name], out[f"{name}_max"] = total / np.maximum(count, 1)[:, None], largest
    value = np.repeat(call.value.double().numpy(), heads // len(call.value), axis=0)
    whole = np.linalg.norm(np.einsum("hqk,hkd->hqd", p, value), axis=-1)
    masses, shares = [], []
    for span in spans:
        inside = (j[0] >= span.start) & (j[0] < span.stop)
        masses.append(p[:, :, inside].sum(-1))
        part = np.linalg.norm(np.einsum("hqk,hkd->hqd", p[:, :, inside], value[:, inside]), axis=-1)
        shares.append(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))
    added = np.einsum("hqk,hkd,hqd->hqk", p, value, call.logit_direction.double().numpy())
    inside = [(j[0] >= span.start) & (j[0] < span.stop) for span in spans]
    out["span_logit_all"] = added.sum(-1)
    out["span_logit"] = np.stack([added[:, :, each].sum(-1) for each in inside] or [added[:, :, 0]], -1)[
        ..., : len(spans)
    ]
    empty = np.zeros((heads, queries, 0))
    out["span_mass"] = np.stack(masses, -1) if spans else empty
    out["output_norm_share"] = np.stack(shares, -1) if spans else empty
    top = np.sort(p, -1)[..., ::-1][..., :8]
    out["p"] = p
    out["top_keys_probability"] = np.pad(top, ((0, 0), (0, 0), (0, 8 - top.shape[-1])))
    return out


def of_keys(call: Call) -> Arrays:
    """Return the statistics of the cache, those that compare layers apart: a loop over heads, in float64."""
    query, key = call.query.double().numpy(), call.key.double().numpy()
    heads, keys, channels = key.shape
    kept = np.full(keys, True) if call.key_visible is None else call.key_visible.numpy()
    stop = call.query_start + (1 if call.phase == "decode" else query.shape[1])
    prompt = kept & (call.key_start + np.arange(keys) < stop)
    last = query[:, : stop - call.query_start]
    names = ("key_spectrum", "key_spectrum_centred")
    out = {name: np.zeros((heads, channels)) for name in names}
    for name in names:
        out |= {f"{name}_{size}": np.zeros(heads) for size in ("effective_rank", "participation_ratio")}
    out["key_neighbour_similarity"] = np.full((heads, keys), np.nan)
    for window, name in ((32, "key_channel_energy"), (5, "key_channel_energy_window_5")):
        num = min(window, last.shape[1])
        squares = (last[:, -window:] ** 2).reshape(heads, -1, num, channels)
        out[name] = (key[:, prompt] ** 2).sum(1) / max(1, prompt.sum())
        out[f"{name}_query"] = squares.mean((1, 2))
        out[f"{name}_num_keys"], out[f"{name}_num_queries"] = np.full(heads, prompt.sum()), np.full(heads, num)
    for h in range(heads):
        for j in range(1, keys):
            product = np.linalg.norm(key[h, j]) * np.linalg.norm(key[h, j - 1])
            out["key_neighbour_similarity"][h, j] = key[h, j] @ key[h, j - 1] / product if product else 0.0
        for name, matrix in zip(names, (key[h, kept], key[h, kept] - key[h, kept].mean(0)), strict=True):
            value = np.linalg.svd(matrix, compute_uv=False)
            energy = value**2
            out[name][h, : len(value)] = value / np.sqrt(kept.sum())
            # One key is its own mean.
            if energy.sum():
                share = energy[energy > 0] / energy.sum()
                out[f"{name}_effective_rank"][h] = np.exp(-(share * np.log(share)).sum())
                out[f"{name}_participation_ratio"][h] = energy.sum() ** 2 / (energy**2).sum()
    return out


def eager(call: Call) -> np.ndarray:
    """Return p [head, query, key] as eager attention computes it in the call's own dtype."""
    _, s, _, _ = probabilities(call)
    hidden = torch.from_numpy(np.isneginf(s))
    logits = call.query @ call.key.repeat_interleave(len(call.query) // len(call.key), 0).transpose(1, 2) * call.scale
    if call.softcap:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    if call.alibi_slope is not None:
        i = call.query_start + torch.arange(call.num_queries)[:, None]
        j = call.key_start + torch.arange(call.num_keys)
        logits = logits - call.alibi_slope[:, None, None].to(logits.dtype) * (i - j).abs().to(logits.dtype)
    if call.distance_bias is not None:
        i = call.query_start + torch.arange(call.num_queries)[:, None]
        d = i - call.key_start - torch.arange(call.num_keys) - call.distance_bias_start
        logits = logits + call.distance_bias.to(logits.dtype)[:, d.clamp(0, call.distance_bias.shape[1] - 1)]
    logits = logits.masked_fill(hidden, -torch.inf)
    if call.sink_logit is not None:
        sink = call.sink_logit.to(logits.dtype)[:, None, None].expand(-1, logits.shape[1], 1)
        logits = torch.cat([logits, sink], -1)
    return logits.softmax(-1)[..., : call.num_keys].double().numpy()


REQUESTS = (
    "log_sum_exp",
    "queries_and_keys",
    "entropy",
    "max_probability",
    "max_logit",
    "sink_mass",
    {"sink_mass": {"num_sink": 1}},
    "recent_mass",
    {"recent_mass": {"recent": 5}},
    "offset_mass",
    {"offset_mass": {"num_offset": 2, "others": [7, 500]}},
    "match_mass",
    {"match_mass": {"by": "induction"}},
    "mean_distance",
    "distance_histogram",
    "received_mass",
    {"received_mass": {"horizon": 64}},
    "attention_map",
    {"attention_map": {"grid": 8}},
    "span_mass",
    "top_keys",
    "output_norm_share",
    "span_logit",
    "window_mass",
    "sparse_shape_mass",
    "key_norm",
    "value_norm",
    "key_channel_energy",
    {"key_channel_energy": {"window": 5}},
    "key_spectrum",
    "key_neighbour_similarity",
    "key_layer_similarity",
    "value_layer_similarity",
)


def assert_close(name: str, actual: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    """Assert |actual − wanted| ≤ tolerance · max(1, |wanted|), infinities equal, and NaN only where it is wanted."""
    assert actual.shape == wanted.shape, f"{name}: shape {actual.shape}, not {wanted.shape}"
    finite = np.isfinite(wanted)
    same = np.array_equal(actual[~finite], wanted[~finite], equal_nan=True)
    assert same, f"{name}: infinities or NaN differ"
    error = np.abs(actual[finite] - wanted[finite]) / np.maximum(1, np.abs(wanted[finite]))
    assert not error.size or error.max() <= tolerance, f"{name}: off by {error.max():.2e}"


def assert_all_close(actual: Arrays, wanted: Arrays, key_start: int = 0, tolerance: float = 1e-5) -> None:
    """Assert that arrays are as `expected` has them. A key named as the largest must be within tolerance of it."""
    for name, values in actual.items():
        if name in ("argmax_key", "top_keys"):
            key = values if name == "top_keys" else values[..., None]
            probability = np.take_along_axis(wanted["p"], np.maximum(key - key_start, 0), -1) * (key >= 0)
            best = wanted["top_keys_probability"][..., : key.shape[-1]]
            assert_close(name, probability, best, tolerance)
            assert ((key >= 0) == (wanted["top_keys_probability"] > 0)[..., : key.shape[-1]]).all()
        else:
            assert_close(name, values, wanted[name], tolerance)


HALF_PRECISION = ("received_mass", "max_probability", "sink_mass")


def assert_no_worse_than_eager(actual: Arrays, call: Call) -> None:
    """Assert that `HALF_PRECISION` statistics are within 1.5 times the error of eager attention in the call's dtype."""
    wanted, p = expected(call), eager(call)
    values = {"received_mass": p.sum(1), "max_probability": p.max(-1), "sink_mass": p[..., :4].sum(-1)}
    for name in HALF_PRECISION:
        bar = 1.5 * np.abs(values[name] - wanted[name]).max()
        assert np.abs(actual[name] - wanted[name]).max() <= bar, name


@pytest.fixture(scope="session")
def all_shapes() -> dict[str, Shape]:
    """Every kind of attention by name."""
    return SHAPES


@pytest.fixture(scope="session")
def attention() -> Attention:
    """What the tests of this folder share."""
    return Attention()


class Attention:
    """The functions above, for tests to call."""

    Shape = Shape
    REQUESTS = REQUESTS
    make_call: Callable[..., Call] = staticmethod(make_call)
    make_spans: Callable[..., tuple[Span, ...]] = staticmethod(make_spans)
    expected: Callable[..., Arrays] = staticmethod(expected)
    probabilities = staticmethod(probabilities)
    HALF_PRECISION = HALF_PRECISION
    assert_no_worse_than_eager: Callable[..., None] = staticmethod(assert_no_worse_than_eager)
    assert_close = staticmethod(assert_close)
    assert_all_close = staticmethod(assert_all_close)

    @staticmethod
    def cut(call: Call, first: int, stop: int, *, phase: str = "decode", keep: int | None = None) -> Call:
        """Return the queries `[first, stop)` of a call as a chunk of their own, with the keys that a cache would hold:
        up to the chunk's last position, and no more than `keep` before its first."""
        start, end = call.query_start + first, call.query_start + stop
        key_first = 0 if keep is None else max(0, start - keep - call.key_start)
        key_stop = end - call.key_start
        keys = slice(key_first, key_stop)
        return replace(
            call,
            query=call.query[:, first:stop],
            key=call.key[:, keys],
            value=call.value[:, keys],
            logit_direction=call.logit_direction[:, first:stop],
            tokens=None if call.tokens is None else call.tokens[keys],
            document=None if call.document is None else call.document[keys],
            key_visible=None if call.key_visible is None else call.key_visible[keys],
            query_start=start,
            key_start=call.key_start + key_first,
            phase=phase,
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shape" in metafunc.fixturenames:
        metafunc.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())

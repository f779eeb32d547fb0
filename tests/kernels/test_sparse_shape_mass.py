"""MInference's shapes at one budget, against loops over the dense matrix in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from probe.errors import UsageError
from probe.kernels.dense import Dense
from probe.kernels.scan import Scan
from probe.kernels.statistic import parse

CANDIDATES = [(30, 800), (100, 750), (500, 700), (3500, 100)]
ASKED = {"one_in": 4, "window": 16, "rows": 64}


def by_hand(call, p, one_in, window, rows):
    """Masks, key by key, of a prompt that is the whole call."""
    heads, num = p.shape[:2]
    budget = num // one_in
    stop = (num - window) // 32 * 32
    first = max(-(-num // 2), stop - rows)
    first = -(-first // 32) * 32
    kept = {name: np.zeros(p.shape, bool) for name in ("", "a_shape", "block_sparse")}
    sinks = budget * 100 // 900
    query, key = call.query.double().numpy(), call.key.double().numpy()
    for h in range(heads):
        columns = p[h, num - window :].sum(0)
        slash = np.array([sum(p[h, i, i - d] for i in range(num - window, num) if i >= d) for d in range(num)])
        tried = []
        for v, s in CANDIDATES:
            forced, count = 30 * budget // (v + s), v * budget // (v + s)
            mask = np.zeros((num, num), bool)
            chosen = [*range(forced), *(int(j) for j in np.argsort(-columns) if j >= forced)][:count]
            diagonals = [*range(forced), *(int(d) for d in np.argsort(-slash) if d >= forced)][: budget - count]
            for i in range(num):
                for j in range(i + 1):
                    mask[i, j] = j in chosen or i - j in diagonals
            tried.append(((p[h] * mask)[num - window :].sum(), mask))
        kept[""][h] = max(tried, key=lambda each: each[0])[1]
        k = key[h * len(key) // heads]
        for i in range(first, stop):
            for j in range(i + 1):
                kept["a_shape"][h, i, j] = j < sinks or i - j < budget - sinks
        for block in range(first // 32, stop // 32):
            mean = query[h, block * 32 : block * 32 + 32].mean(0)
            logits = [float(mean @ k[b * 32 : b * 32 + 32].mean(0)) for b in range(block + 1)]
            for b in sorted(range(block + 1), key=lambda b: -logits[b])[: budget // 32]:
                for i in range(block * 32, block * 32 + 32):
                    kept["block_sparse"][h, i, b * 32 : min(b * 32 + 32, i + 1)] = True
    made = {}
    for name, mask in kept.items():
        made[name] = (p * mask)[:, first:stop].sum(-1).mean(-1)
        seen = np.arange(first, stop) + 1
        made[f"{name}_chance".strip("_")] = (mask[:, first:stop].sum(-1) / seen).mean(-1)
    return made, mask, stop - first


def scanned(attention, call, cuts, asked):
    scan = Scan([{"sparse_shape_mass": asked}])
    for start, stop in pairwise(cuts):
        scan.update(attention.cut(call, start, stop, phase="prefill"))
    scan.update(attention.cut(call, cuts[-1], cuts[-1] + 1))
    return {name: result.values.numpy() for name, result in scan.finish().items()}


@pytest.mark.parametrize("cuts", [(0, 199), (0, 70, 131, 199), (0, 198, 199)])
@pytest.mark.parametrize("kv_head", [1, 4])
def test_it_is_what_the_masks_keep(attention, cuts, kv_head):
    call = attention.make_call(attention.Shape(kv_head=kv_head, sharpness=2.0), 200)
    p = attention.probabilities(call)[0]
    wanted, _, number = by_hand(call, p, **ASKED)
    found = scanned(attention, call, cuts, ASKED)
    key = parse({"sparse_shape_mass": ASKED}).key
    for name, values in wanted.items():
        np.testing.assert_allclose(found[f"{key}_{name}".strip("_")], values, atol=1e-5)
    assert (found[f"{key}_num_queries"] == number).all()
    whole = attention.cut(call, 0, 200, phase="prefill")
    for name, values in parse({"sparse_shape_mass": ASKED}).reference(Dense(whole)).items():
        if name != "num_queries":
            np.testing.assert_allclose(values.numpy(), wanted[name], atol=1e-9)


def test_every_shape_keeps_at_most_the_budget(attention):
    """Uniform attention retains no more than one key in `one_in` of the prompt is of those that a query sees."""
    call = attention.make_call(attention.Shape(kv_head=2), 300)
    key = parse({"sparse_shape_mass": ASKED}).key
    found = scanned(attention, call, (0, 299), ASKED)
    first, stop = parse({"sparse_shape_mass": ASKED}).measured(300)
    most = np.mean([75 / (i + 1) for i in range(first, stop)])
    for name in ("chance", "a_shape_chance", "block_sparse_chance"):
        assert (found[f"{key}_{name}"] <= most + 1e-6).all()
    np.testing.assert_allclose(found[f"{key}_a_shape_chance"], most, atol=1e-6)


@pytest.mark.parametrize("planted", ["", "a_shape", "block_sparse"])
def test_the_planted_shape_retains_most(attention, planted):
    """Keys are made so that one head's attention is a few columns, the nearest keys, or one block of another text."""
    import torch

    generator = torch.Generator().manual_seed(0)
    num, width = 512, 64
    call = attention.make_call(attention.Shape(head=1, kv_head=1, channel=width), num)
    query, key = torch.zeros(1, num, width), 0.1 * torch.randn(1, num, width, generator=generator)
    if planted == "":
        query[..., 0], key[0, [100, 171, 242], 0] = 60.0, 1.0
    elif planted == "a_shape":
        at = torch.arange(num) / 200.0
        query[0, :, 0], query[0, :, 1] = 3000 * at.cos(), 3000 * at.sin()
        key[0, :, 0], key[0, :, 1] = at.cos(), at.sin()
    else:
        # Every block of queries asks for a block of its own, none of the others'.
        for block in range(num // 32):
            rows = slice(block * 32, block * 32 + 32)
            query[0, rows, (block * 7 + 3) % (block + 1) % width] = 60.0
            key[0, rows, block] = 1.0
    call = type(call)(**{**vars(call), "query": query, "key": key})
    found = scanned(attention, call, (0, num - 1), {})
    shapes = {name: float(found[f"sparse_shape_mass_{name}".strip("_")][0]) for name in ("", "a_shape", "block_sparse")}
    assert shapes[planted] > 0.8
    if planted != "a_shape":
        # The nearest keys are diagonals, too.
        assert max(shapes, key=lambda name: shapes[name]) == planted, shapes


@pytest.mark.parametrize("options", [{"window": 50}, {"hidden": True}, {"documents": 3}])
def test_where_the_whole_past_is_not_seen_there_is_nothing(attention, options):
    call = attention.make_call(attention.Shape(kv_head=2, **options), 300)
    assert not scanned(attention, call, (0, 299), ASKED)


def test_short_prompts_and_fields_that_cannot_be(attention):
    call = attention.make_call(attention.Shape(), 100)
    assert not scanned(attention, call, (0, 99), ASKED)
    assert not scanned(attention, call, (0, 99), {})
    for name, value in (("one_in", 1), ("window", 0), ("rows", 31)):
        with pytest.raises(UsageError, match=f"{name} is at least"):
            parse({"sparse_shape_mass": {name: value}})

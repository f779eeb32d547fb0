"""Recurrent and hybrid models through `probe.trace`: any chunking, padding, both kinds of statistics in one run."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

import probe
from probe.errors import DeviceTooSmall, NotReproducible, UsageError
from probe.hooks.models.huggingface import load
from probe.kernels.recurrence import Recurrence
from probe.kernels.recurrence_scan import RecurrenceScan

STATE = ["state_mean", "state_variance", "state_max", "state_norm"]
ALL = [*STATE, "decay", "input_gate", "effective_attention", "effective_distance"]
HYBRIDS = {
    "jamba": ([0], [1]),
    "zamba2": ([0, 1, 2, 3], [1, 3]),
    "bamba": ([0], [1]),
    "falcon_h1": ([0, 1], [0, 1]),
    "nemotron_h": ([0, 3], [1]),
    "granitemoehybrid": ([0], [1]),
    "qwen3_next": ([0], [1]),
    "kimi_linear": ([0], [1]),
    "minimax": ([0], [1]),
    "recurrent_gemma": ([0], [1]),
}
KINDS = [*HYBRIDS, "zamba", "mamba", "falcon_mamba", "mamba2", "qwen3_5_text", "olmo_hybrid", "rwkv", "xlstm"]


def off(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    assert (np.isnan(actual) == np.isnan(expected)).all()
    largest = np.nanmax(np.abs(expected), initial=1e-30)
    return float(np.nanmax(np.abs(actual - expected), initial=0) / largest)


@pytest.mark.parametrize("kind", KINDS)
def test_no_chunking_changes_a_statistic(kind, make, tokens):
    model, ids = load(make(kind)), tokens(66)
    asked = [*({name: {"every": 16}} for name in STATE), *ALL[4:]]
    whole = probe.trace(model, ids, statistics=asked, max_new_tokens=2)
    assert whole["state_norm_every_16"].coords["position"].values.tolist() == [15, 31, 47, 63, 66]
    assert whole["effective_attention"].dims == ("layer", "state_head", "row", "key")
    assert not whole["effective_attention"].values[0, 0, 0, -1], "a token that comes later"
    for chunk_tokens in (1, 7, 64):
        found = probe.trace(model, ids, statistics=asked, max_new_tokens=2, chunk_tokens=chunk_tokens)
        assert set(found.dataset) == set(whole.dataset)
        for name in whole.dataset:
            # Attention between recurrent layers hands its own rounding on.
            assert off(found[name].values, whole[name].values) <= (1e-4 if "zamba" in kind else 1e-5), name


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_hybrid_gives_both_kinds_layer_by_layer_in_one_run(kind, make, tokens):
    model, ids = load(make(kind)), tokens(15)
    recurs, attends = HYBRIDS[kind]
    trace = probe.trace(model, ids, statistics=["state_norm", "decay", "effective_attention", "entropy", "loss"])
    states, entropy = trace["state_norm"].values, trace["entropy"].values
    assert [layer for layer in range(len(states)) if np.isfinite(states[layer]).any()] == recurs
    assert [layer for layer in range(len(entropy)) if np.isfinite(entropy[layer]).any()] == attends
    assert np.flatnonzero(trace["num_state_heads"].values > 0).tolist() == recurs
    assert np.flatnonzero(trace["num_heads"].values > 0).tolist() == attends
    alone = probe.trace(model, ids, statistics=["entropy", "loss"])
    attended = alone["entropy"].values
    assert off(attended, entropy[: len(attended)]) == 0
    assert off(alone["loss"].values, trace["loss"].values) == 0
    assert sorted(i for layers in trace.provenance["recurrent_layers"].values() for i in layers) == recurs


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_gives_what_each_sample_gives_alone_or_is_refused(kind, side, make, tokens):
    if kind == "xlstm":
        pytest.skip("its forward has no attention mask, so that no padding can be told")
    model, lengths = load(make(kind)), (21, 33)
    ids, mask = torch.zeros(2, 33, dtype=torch.long), torch.zeros(2, 33, dtype=torch.long)
    for row, length in enumerate(lengths):
        real = slice(33 - length, 33) if side == "left" else slice(0, length)
        ids[row, real], mask[row, real] = torch.tensor(tokens(length, seed=row)), 1
    scans: dict[tuple[int, int], RecurrenceScan] = {}

    def on_recurrence(sample: int, recurrence: Recurrence) -> None:
        scan = scans.setdefault((recurrence.layer, sample), RecurrenceScan(ALL))
        scan.update(recurrence)

    with torch.no_grad(), model.calls(None, None, on_recurrence):
        if side == "left" and kind in ("rwkv", "recurrent_gemma"):
            with pytest.raises(NotReproducible, match=r"layer 0: its output.*padding"):
                model.hf(input_ids=ids, attention_mask=mask)
            return
        model.hf(input_ids=ids, attention_mask=mask)
    for row, length in enumerate(lengths):
        alone = probe.trace(model, tokens(length, seed=row), statistics=ALL)
        for (layer, sample), scan in scans.items():
            for name, result in scan.finish().items() if sample == row else ():
                expected = alone[name].values[layer][: result.values.shape[0]]
                assert off(result.values.numpy(), expected) <= (1e-4 if "zamba" in kind else 1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_watching_changes_nothing_and_leaves_nothing_behind(kind, make, tokens):
    hf = make(kind)
    model, ids = load(hf), torch.tensor([tokens(19)])
    sources = {id(space): space for module in hf.modules() if (space := source_of(module)) is not None}
    before = {at: dict(space) for at, space in sources.items()}
    with torch.no_grad():
        plain = hf(input_ids=ids).logits
        with model.calls(None, None, lambda *_: None):
            assert (hf(input_ids=ids).logits == plain).all()
        assert (hf(input_ids=ids).logits == plain).all()
    assert all(before[at][name] is space[name] for at, space in sources.items() for name in before[at])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())


def source_of(module: torch.nn.Module) -> dict[str, object] | None:
    space = getattr(inspect.unwrap(type(module).forward), "__globals__", None)
    return space if space is not None and "transformers.models" in str(space.get("__name__")) else None


def test_another_model_of_the_kind_is_not_watched(make, tokens):
    one, other = load(make("mamba2")), make("mamba2", num_hidden_layers=3)
    seen: list[int] = []
    with torch.no_grad(), one.calls(None, None, lambda _, recurrence: seen.append(recurrence.layer)):
        other(input_ids=torch.tensor([tokens(5)]))
        assert not seen
        one.hf(input_ids=torch.tensor([tokens(5)]))
    assert seen == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "qwen3_next", "kimi_linear", "rwkv", "minimax", "recurrent_gemma"])
def test_a_recurrence_that_is_not_the_model_s_is_refused(kind, make, tokens, monkeypatch):
    hf = make(kind)
    model, name = load(hf), {"rwkv": "rwkv_linear_attention"}.get(kind)
    layer = model.recurrent_layers[0]
    module = layer.module()
    names = [name] if name else layer.family.functions
    space = source_of(module)
    for each in names:
        if each in (space or {}):
            monkeypatch.setitem(space, each, wrong(space[each]))
    if not names:
        part = module.norm if kind == "minimax" else module
        own = part.forward
        monkeypatch.setattr(part, "forward", lambda *args, **kwargs: own(*args, **kwargs))
        hook = part.register_forward_pre_hook if kind == "minimax" else part.register_forward_hook
        hook((lambda _, args: (args[0] * 1.01,)) if kind == "minimax" else lambda _, __, output: output * 1.01)
    with pytest.raises(NotReproducible, match=r"layer 0: its (output|state) is not what its recurrence gives.*0\."):
        probe.trace(model, tokens(12), statistics=["state_norm"])


def wrong(own):
    @functools.wraps(own)
    def slightly(*args, **kwargs):
        output = own(*args, **kwargs)
        return (output[0] * 1.01, *output[1:]) if isinstance(output, tuple) else output * 1.01

    return slightly


def test_what_a_model_does_not_have_is_refused_by_name(make, tokens):
    mamba, ids = load(make("mamba2")), tokens(9)
    for asked in ("entropy", "span_mass", "key_norm", {"entropy": {"layers": [0]}}):
        with pytest.raises(UsageError, match="no attention layer to read: it is all recurrent"):
            probe.trace(mamba, ids, statistics=asked)
    with pytest.raises(UsageError, match="no recurrent layer 1; it has 0"):
        probe.trace(make("bamba"), ids, statistics={"decay": {"layers": [1]}})
    with pytest.raises(UsageError, match="no attention layer 0; it has 1"):
        probe.trace(make("bamba"), ids, statistics={"entropy": {"layers": [0]}})
    with pytest.raises(UsageError, match="equally many tokens"):
        probe.trace(mamba, ids, statistics=["state_mean", {"state_norm": {"every": 3}}])
    with pytest.raises(UsageError, match="Lfm2ShortConv is a short convolution"):
        probe.trace(make("lfm2"), ids, statistics="decay")
    with pytest.raises(UsageError, match=r"layer 0 \(ZayaCCAProjection\) keeps a recurrent state of a kind"):
        probe.trace(make("zaya"), ids, statistics="decay")
    assert "entropy" in probe.trace(make("zaya"), ids, statistics="entropy").dataset
    with pytest.raises(NotReproducible, match="short convolution"), load(make("lfm2")).calls(None, None, print):
        pass


def test_a_model_that_is_all_recurrent_has_no_heads_and_breaks_nothing(make, tokens):
    model = load(make("mamba2"))
    assert model.num_heads == model.num_kv_heads == model.head_dim == [0, 0]
    assert model.attention_layers == {}
    assert list(model.recurrent_layers) == [0, 1]
    trace = probe.trace(model, tokens(9))
    assert {*STATE, "decay", "input_gate", "loss"} <= set(trace.dataset)
    assert not {"entropy", "effective_attention"} & set(trace.dataset)
    assert "state_norm" in repr(trace)
    assert trace._repr_html_()


@pytest.mark.parametrize("form", ["netcdf", "csv"])
def test_a_trace_of_states_is_stored_pooled_opened_and_exported(form, make, tokens, tmp_path: Path):
    model, ids = load(make("falcon_h1")), tokens(100)
    asked = ["state_norm", "decay", "effective_attention", {"state_mean": {"layers": [1]}}, "entropy"]
    kept = probe.trace(model, ids, statistics=asked, pool_tokens=16, chunk_tokens=30, out=tmp_path / "trace")
    whole = probe.trace(model, ids, statistics=asked, pool_tokens=None)
    decay = whole["decay"].values
    means = np.stack([decay[..., i : i + 16].mean(-1) for i in range(0, 100, 16)], -1)
    assert off(kept["decay"].values, means) <= 1e-5
    assert off(kept["state_norm"].values, whole["state_norm"].values) <= 1e-5
    assert kept["effective_attention"].dims[-1] == "key_block"
    mean = kept.layer(1)["state_mean"].values
    assert off(mean, whole.layer(1)["state_mean"].values) <= 1e-5
    opened = probe.open(tmp_path / "trace")
    assert off(opened["decay"].values, kept["decay"].values) == 0
    assert opened.export(tmp_path / f"exported.{form}", form) if hasattr(opened, "export") else True


def test_the_caller_s_own_forwards_and_generation_are_read(make, tokens):
    model, seen = load(make("mamba2")), list[Recurrence]()
    ids = torch.tensor([tokens(11)])
    with torch.no_grad(), model.calls(None, None, lambda _, recurrence: seen.append(recurrence)):
        model.hf(input_ids=ids, use_cache=False)
    assert [(each.start, each.num_tokens, each.phase) for each in seen[:2]] == [(0, 10, "prefill"), (10, 1, "decode")]
    cache = model.hf(input_ids=ids, use_cache=True).cache_params
    with (
        torch.no_grad(),
        model.calls(None, None, lambda *_: None),
        pytest.raises(NotReproducible, match="how many tokens came before"),
    ):
        model.hf(input_ids=ids[:, :1], cache_params=cache, use_cache=True)


@pytest.mark.parametrize("kind", ["mamba2", "mamba", "qwen3_next", "falcon_h1"])
def test_a_chunk_that_is_put_through_again_is_read_once(kind, make, tokens):
    model, ids = load(make(kind)), tokens(75)
    whole = probe.trace(model, ids, statistics=ALL)
    last = model.recurrent_layers[max(model.recurrent_layers)].module()
    refused = []

    def refuse(_: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        length = (args[0] if args else kwargs["hidden_states"]).shape[1]
        if length == 40 and not refused:
            refused.append(length)
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = last.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        found = probe.trace(model, ids, statistics=ALL, chunk_tokens=40)
    finally:
        handle.remove()
    assert refused == [40]
    for name in whole.dataset:
        assert off(found[name].values, whole[name].values) <= 1e-5, name


def test_a_reader_that_runs_out_of_memory_is_named(make, tokens):
    def full(sample: int, recurrence: Recurrence) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = load(make("mamba2"))
    with model.calls(None, None, full), pytest.raises(DeviceTooSmall, match="layer 0: what reads its recurrence"):
        model.prefill(tokens(20))

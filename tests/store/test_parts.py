"""An encoder-decoder's unit holds three attentions, each with axes of its own, and each reads as a trace."""

from __future__ import annotations

import numpy as np
import pytest

import probe
from probe.errors import MissingStatistic, UsageError
from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.storage.array import Array
from probe.storage.store import MemoryStore, RunStore

SAMPLE = Sample("translated", tuple(range(9)), (Span("needle", 2, 4),))


def entropy(heads, queries, at):
    values = np.full((heads, queries), at, np.float32)
    return {"entropy": Array(("head", "query"), values, "nats", coordinates={"query": np.arange(queries)})}


def written(store):
    writer = store.begin_unit("a", stage="", condition="", facts={}, sample=SAMPLE, provenance={"model": "tiny"})
    with writer:
        writer.write_layer(0, entropy(4, 2, 1.0))
        encoder, cross = writer.part("encoder"), writer.part("cross")
        for layer in range(3):
            encoder.write_layer(layer, entropy(3, 9, 2.0))
        cross.append_layer(0, entropy(4, 1, 3.0), "query")
        cross.append_layer(0, {"entropy": part(4, 1, 1)}, "query")
        cross.of_layer(0).write({"key_norm": Array(("kv_head", "key"), np.ones((4, 9), np.float32))})
        encoder.note(num_queries=9, engine="blocked", non_finite=[{"layer": 1}])
        cross.note(num_queries=2, attention={"0": {"scale": 1.0}})
        assert writer.non_finite == [{"layer": 1}]
        with pytest.raises(UsageError, match="no part 'decoder'; it has encoder, cross"):
            writer.part("decoder")
        with pytest.raises(UsageError, match="no place for 'private'"):
            cross.note(private=True)
        writer.commit(Outcome(response="x", response_tokens=(1,)))


def part(heads, queries, start):
    values = np.full((heads, queries), 3.0, np.float32)
    return Array(("head", "query"), values, "nats", coordinates={"query": start + np.arange(queries)})


@pytest.fixture(params=["memory", "disk", "saved"])
def trace(request, tmp_path):
    if request.param == "memory":
        store = MemoryStore()
        written(store)
        return store.trace("a")
    with RunStore(tmp_path) as store:
        written(store)
        found = store.trace("a")
    if request.param == "disk":
        assert found.verify() == []
        return found
    return probe.open(found.save(tmp_path / "copy"))


def test_every_part_has_its_own_layers_heads_and_positions(trace):
    assert trace.parts == ("cross", "encoder")
    sizes = {None: (1, 4, 2), "encoder": (3, 3, 9), "cross": (1, 4, 2)}
    for name, value in ((None, 1.0), ("encoder", 2.0), ("cross", 3.0)):
        of = trace if name is None else trace.part(name)
        assert of["entropy"].shape == sizes[name]
        assert (of["entropy"].values == value).all()
        assert set(of.dataset.data_vars) == {"entropy", "num_heads"}
    assert trace.part("cross").layer(0)["key_norm"].shape == (4, 9)
    assert trace.part("encoder").heads == {0: 3, 1: 3, 2: 3}


def test_a_part_is_a_trace_of_the_same_sample(trace):
    cross, encoder = trace.part("cross"), trace.part("encoder")
    assert cross.sample == encoder.sample == trace.sample == SAMPLE
    assert cross.outcome == trace.outcome
    assert (encoder.num_queries, cross.num_queries) == (9, 2)
    assert cross.kept_layers == {"0": {"scale": 1.0}}
    assert encoder.non_finite == [{"layer": 1}]
    assert trace.non_finite == cross.non_finite == []
    assert encoder.provenance == {"model": "tiny", "engine": "blocked", "part": "encoder"}
    assert cross.parts == ()


def test_what_is_not_there_is_said(trace):
    with pytest.raises(MissingStatistic, match="no part 'decoder'; it has cross, encoder"):
        trace.part("decoder")
    for what in (trace.part("cross").verify, lambda: trace.part("cross").save("x")):
        with pytest.raises(UsageError, match="with the trace"):
            what()

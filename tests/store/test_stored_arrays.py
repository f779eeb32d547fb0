"""Arrays read without xarray are those that xarray reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probe.errors import MissingStatistic
from probe.sample import Sample, Span
from probe.storage.array import Array
from probe.storage.store import RunStore, write_json
from probe.storage.trace_store import open as open_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("stored") / "run"
    sample = Sample("s", tuple(range(8)), (Span("<b>needle</b>", 1, 3), Span("question", 6, 8)))
    mass = np.arange(3 * 2 * 2, dtype=np.float32).reshape(3, 2, 2)
    with RunStore(path) as store, store.begin_unit("u", sample=sample) as writer:
        for layer in range(2):
            names = tuple(span.name for span in sample.spans)
            array = Array(
                ("head", "row", "span"), mass + 100 * layer, "probability", coordinates={"span": np.array(names)}
            )
            writer.write_layer(layer, {"span_mass": array})
        writer.commit()
    write_json(path / "run.json", {"format": 1, "status": "complete"})
    return open_trace(path).trace("u")


def test_an_array_is_read_in_ranges(trace: Any) -> None:
    array = trace.stored("span_mass")
    assert array.dims == ("layer", "head", "row", "span")
    wanted = 100 + np.arange(12, dtype=np.float32).reshape(3, 2, 2)[1:, :1]
    assert np.array_equal(array.read((1, 2), (1, 3), (0, 1), (0, 2))[0], wanted)


def test_names_and_labels_are_known_without_reading(trace: Any) -> None:
    assert "span_mass" in trace.stored_names()
    assert set(trace) <= set(trace.stored_names())
    assert trace.labels("span") == ("<b>needle</b>", "question")
    assert trace.labels("row") == ()


def test_what_was_not_captured_is_named(trace: Any) -> None:
    with pytest.raises(MissingStatistic, match=r"no .entropy.; it has .*span_mass"):
        trace.stored("entropy")

"""A unit with one array of each kind, whose values are known outside of the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.storage.store import Array, RunStore, UnitWriter, write_json

NUM_HEADS = (4, 2, 6)
"""Query heads of each layer: the second has fewer than the first, the third more."""

OUTCOME = Outcome("11", (11,), True, "exact", (-0.5, -1.5), 2.5)


@dataclass
class Written:
    """A run folder with committed units, and what was written to each."""

    path: Path
    units: tuple[str, ...]
    values: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    def folder(self, unit: str | None = None) -> Path:
        """Return a unit's folder, by default the first's."""
        return self.path / "trace.zarr" / (unit or self.units[0])


def make_sample(name: str = "needle-64-0.50-s0") -> Sample:
    """A prompt of 64 tokens with a needle."""
    return Sample(
        name, tuple(range(64)), (Span("needle", 20, 28), Span("question", 60, 64)), (11,), "11", "…", {"k": 1}
    )


def write_unit(writer: UnitWriter, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Write arrays layer by layer and whole, and return what must be read back."""
    rng = np.random.default_rng(seed)
    entropy = np.full((3, 6, 64), np.nan, np.float32)
    argmax = np.full((3, 6, 64), -1, np.int64)
    span = np.full((3, 6, 2, 2), np.nan)
    for layer, num_heads in enumerate(NUM_HEADS):
        entropy[layer, :num_heads] = rng.normal(size=(num_heads, 64))
        entropy[layer, 0, 5] = np.nan
        argmax[layer, :num_heads] = rng.integers(0, 64, size=(num_heads, 64))
        span[layer, :num_heads] = rng.random((num_heads, 2, 2))
        names = np.array(["needle", "question"])
        writer.write_layer(
            layer,
            {
                "entropy": Array(("head", "query"), entropy[layer, :num_heads], "nats", "−Σ p log p", "ours"),
                "argmax_key": Array(("head", "query"), argmax[layer, :num_heads], "position"),
                "span_mass": Array(("head", "row", "span"), span[layer, :num_heads], coordinates={"span": names}),
            },
        )
        bits = np.arange(4 * num_heads, dtype=np.uint16).reshape(num_heads, 4)
        kept = Array(("head", "query"), bits, coordinates={"query": np.arange(4)}, bits_of="bfloat16")
        writer.of_layer(layer).append({"query_vector": kept}, "query", split=("head",))
    loss = rng.random(63)
    writer.write({"loss": Array(("token",), loss, "nats", coordinates={"token": np.arange(1, 64)})})
    return {"entropy": entropy, "argmax_key": argmax, "span_mass": span, "loss": loss}


@pytest.fixture
def sample() -> Sample:
    return make_sample()


@pytest.fixture
def written(tmp_path: Path, written_once: Written) -> Written:
    """A run of two committed units, to do with as one likes."""
    shutil.copytree(written_once.path, tmp_path / "run")
    return Written(tmp_path / "run", written_once.units, written_once.values)


@pytest.fixture(scope="session")
def written_once(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The run that `written` is a copy of; nobody changes this one."""
    run = tmp_path_factory.mktemp("written") / "run"
    made = Written(run, ("baseline-a", "control-b"))
    with RunStore(run) as store:
        for seed, unit in enumerate(made.units):
            writer = store.begin_unit(
                unit,
                stage="read",
                condition=unit.split("-")[0],
                facts={"role": unit.split("-")[0]},
                sample=make_sample(),
                provenance={"model": "tiny"},
            )
            values = write_unit(writer, seed)
            made.values = made.values or values
            writer.commit(OUTCOME)
    write_json(run / "run.json", {"format": 1, "status": "complete"})
    return made


@pytest.fixture
def write() -> Callable[..., dict[str, np.ndarray[Any, Any]]]:
    return write_unit

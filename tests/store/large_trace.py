"""Writes a trace of so many gigabytes as a reader does, reads it again, and prints the memory beyond the baseline."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import xarray  # noqa: F401 (part of the baseline, as is zarr)
import zarr  # noqa: F401

from probe.sample import Sample
from probe.storage.checking import check_units
from probe.storage.commits import Commits
from probe.storage.store import Array, RunStore

LAYERS, HEADS, PART = 64, 32, 4096
"""What one part of one layer is: 32 × 4,096 numbers, half a MiB."""


def peak_mib() -> float:
    """Return the most memory that the process held so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def main(folder: str, gigabytes: float) -> None:
    """Write, read and verify; every block differs from the others, and no two numbers compress."""
    parts = max(1, round(gigabytes * 1e9 / (LAYERS * HEADS * PART * 4)))
    noise = np.random.default_rng(0).random((HEADS, PART), dtype=np.float32)
    before = peak_mib()
    with RunStore(folder) as store:
        writer = store.begin_unit("u", sample=Sample("s", (1,)))
        for part in range(parts):
            for layer in range(LAYERS):
                noise[0, 0] = part * LAYERS + layer
                writer.append_layer(layer, {"entropy": Array(("head", "query"), noise)}, "query")
        writer.commit()
    written = peak_mib() - before
    entropy = RunStore(folder).trace("u")["entropy"]
    right = entropy.shape == (LAYERS, HEADS, parts * PART)
    for part in range(parts):
        for layer in range(LAYERS):
            block = entropy.isel(layer=layer, query=slice(part * PART, (part + 1) * PART)).values
            right = right and block[0, 0] == part * LAYERS + layer and bool((block[1:] == noise[1:]).all())
    read = peak_mib() - before
    damaged = [str(each) for each in check_units(Path(folder), Commits(Path(folder) / "commits.jsonl"))]
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    verified = peak_mib() - before
    print(json.dumps([right, damaged, size, written, read, verified]))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

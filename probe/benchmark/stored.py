"""A benchmark's JSON file: written after every measurement, read strictly."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from probe.benchmark.result import FORMAT, Bench
from probe.errors import StoreCorrupt, UsageError
from probe.storage.durable import read_json, write_json


def write_bench(path: Path, bench: Bench) -> None:
    """Write the file, whole or not at all."""
    write_json(path, bench.model_dump(mode="json"))


def read_bench(path: Path) -> Bench:
    """Return what a file holds; raises NotAvailable where there is none, StoreCorrupt where it holds something else,
    UsageError where a newer version wrote it."""
    value = read_json(path)
    if not isinstance(value, dict) or "measurements" not in value:
        raise StoreCorrupt(f"{path} is not what `probe bench --json` writes")
    if value.get("format") != FORMAT:
        raise UsageError(f"{path} has format {value.get('format')}; this version reads {FORMAT}")
    try:
        return Bench.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreCorrupt(f"{path} is not what `probe bench --json` writes: {where}: {first['msg']}") from error


def check_place(path: Path) -> None:
    """Raise UsageError where a result could not be written: no folder, or a file that is something else."""
    if not path.parent.is_dir():
        raise UsageError(f"--json: there is no folder {path.parent}")
    if not path.exists():
        return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        held = None
    if not isinstance(held, dict) or "measurements" not in held:
        raise UsageError(f"--json: {path} is there and is no result of `probe bench`; it is not written over")

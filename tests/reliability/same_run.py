"""What of a run's folder must be the same, to the byte, wherever and however often it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def content(folder: Path) -> dict[str, Any]:
    """Return everything that a folder holds, by path, but for what each reading cost and who held the folder.

    Costs stand in a unit's `unit.json`; its hash stands in the unit's manifest, and that one's in the commit record.
    """
    held: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name in (".lock", "cost.json"):
            continue
        data = path.read_bytes()
        if path.name == "unit.json":
            held[name] = {key: value for key, value in json.loads(data).items() if key != "cost"}
        elif path.name == "manifest.json":
            manifest = json.loads(data)
            files = [(row[0] == "unit.json" or row) for row in manifest["files"]]
            held[name] = manifest | {"files": files}
        elif name == "commits.jsonl":
            # Units of a stage may be committed in another order where one was taken out and read again.
            records = [json.loads(line) for line in data.splitlines()]
            held[name] = {record["unit"]: record["failed"] for record in records}
        else:
            held[name] = data
    return held

"""What a workload's files hold, so that a run knows when they have changed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def source_hashes(workload: Any) -> dict[str, str]:
    """Return the SHA-256 of each file that a workload's texts come from, by the name of the field.

    Of a folder it is that of the names and contents of its files. A workload that says nothing of files has none.
    """
    files: dict[str, str] = getattr(workload, "files", dict)()
    return {name: _sha256(Path(path)) for name, path in sorted(files.items()) if Path(path).exists()}


def _sha256(path: Path) -> str:
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for each in sorted(each for each in path.iterdir() if each.is_file()):
        whole.update(f"{each.name}\0{_sha256(each)}\n".encode())
    return whole.hexdigest()

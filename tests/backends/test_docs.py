"""What docs/backends.md says is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from probe import discovery

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "backends.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"example {i}" for i in range(len(BLOCKS))])
def test_an_example_runs(block: str, tmp_path: Path) -> None:
    for library in ("transformer_lens", "nnsight"):
        if library in block:
            pytest.importorskip(library)
    found: dict[str, Any] = {}
    # nnsight reads the source of its blocks from their file.
    page = tmp_path / "example.py"
    page.write_text(block, encoding="utf-8")
    exec(compile(block, str(page), "exec"), found)
    assert found.get("seen", [0, 0, 1, 1, 2, 2]) == [0, 0, 1, 1, 2, 2]
    if "trace" in found:
        assert found["trace"]["entropy"].notnull().all()


def test_every_backend_is_on_the_page() -> None:
    for name in discovery.names("backends"):
        assert f"`{name}`" in PAGE
        assert discovery.describe("backends", name)

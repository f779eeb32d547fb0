"""What docs/file-formats.md writes by hand is a run like any other, to this toolkit too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probe
from probe.command.cli import app
from tests.docs.blocks import ROOT, blocks
from tests.docs.test_python_blocks import run

BLOCKS = [block for block in blocks(ROOT / "docs" / "file-formats.md") if block.language == "python"]


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(BLOCKS[0].text.split("\nentry = next")[0], names)
    run(BLOCKS[1], names)
    return tmp_path / "runs" / "by-hand"


def test_neither_example_needs_the_toolkit_to_read_or_write() -> None:
    assert "import probe" not in BLOCKS[0].text
    assert BLOCKS[1].text.index("import probe") > BLOCKS[1].text.index('"run.copy.json"')


def test_what_was_written_by_hand_is_whole_and_one_flipped_bit_is_found(by_hand: Path) -> None:
    assert CliRunner().invoke(app, ["verify", str(by_hand)]).exit_code == 0
    (chunk,) = by_hand.glob("trace.zarr/*/entropy/c/1/0/0")
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    damaged = CliRunner().invoke(app, ["verify", str(by_hand)])
    assert damaged.exit_code == 5
    assert "entropy" in damaged.output


def test_what_was_written_by_hand_is_read_and_exported_as_any_other(by_hand: Path, tmp_path: Path) -> None:
    (trace,) = probe.open(by_hand).traces()
    assert trace["entropy"].dims == ("layer", "head", "query")
    assert (trace.condition, trace.facts["role"], len(trace.sample)) == ("baseline", "baseline", 4)
    # Uniform attention over i + 1 keys has an entropy of ln(i + 1).
    assert trace["entropy"].values[1, 2].tolist() == pytest.approx([0, 0.693147, 1.098612, 1.386294], abs=1e-6)
    done = CliRunner().invoke(app, ["export", str(by_hand), "--format", "csv", "--out", str(tmp_path / "csv")])
    assert done.exit_code == 0, done.output

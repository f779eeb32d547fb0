"""Every notebook beside a casebook runs from top to bottom, and is what its text says."""

from __future__ import annotations

import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from probe import discovery

CASEBOOKS = Path(__file__).resolve().parent.parent / "casebooks"
NOTEBOOKS = sorted(CASEBOOKS.glob("*/*.ipynb"))
AT_ONCE = ("attention-sinks", "first-look", "flip-flop", "state-collapse")
"""Those that are run with the fast tests, of a specimen each. The others are slow."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_each_casebook_has_its_notebook() -> None:
    assert set(discovery.modules("casebooks").values()) <= {str(path.with_suffix(".yaml")) for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_its_text_and_holds_no_output(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    text = jupytext.read(path.with_suffix(".md"))
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in text.cells]
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=() if p.stem in AT_ONCE else pytest.mark.slow) for p in NOTEBOOKS],
)
def test_the_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CASEBOOKS.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in shown if output.output_type == "error"]
    assert any("text/html" in output.get("data", {}) for output in shown)

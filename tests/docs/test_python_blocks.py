"""Every Python block of README and docs runs, page by page in order, and prints what the page says that it prints."""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from probe.command.cli import app
from tests.docs import standing_in
from tests.docs.blocks import PAGES, ROOT, Block, blocks, every

ELSEWHERE = {"docs/backends.md": "tests/backends/test_docs.py"}
"""Pages whose Python blocks another test runs, each in a namespace of its own."""

SLOW: set[str] = set()
"""Pages whose blocks take longer than seconds."""

LANGUAGES = {"python", "sh", "bash", "console", "shell", "yaml", "json", "toml", "text"}
"""Every fence says one of these; what is no code is text."""

OPTIONAL = ("transformer_lens", "nnsight")
"""Libraries of extras; a block that names one that is not installed is told at the end, when the others have run."""

LAST = "_what_a_notebook_would_show"

MARKED = 8
"""How many blocks may stand unrun, with the reason in the comment before them."""

SHOWN = [path for path in PAGES if any(block.language == "python" for block in blocks(path))]
RUN = [path for path in SHOWN if path.relative_to(ROOT).as_posix() not in ELSEWHERE]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small run of first-look in it, where the pages say that one lies."""
    folder = tmp_path_factory.mktemp("reader")
    with contextlib.chdir(folder):
        done = CliRunner().invoke(
            app, ["run", "first-look", "--limit", "2", "--lengths", "64", "--depths", "0.5", "--quiet"]
        )
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.name, marks=[pytest.mark.slow] if path.name in SLOW else []) for path in RUN],
)
def test_its_blocks_run(path: Path, played: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(path)
    text = "".join(block.text for block in found if block.language == "python")
    shutil.copytree(played / "runs", tmp_path / "runs")
    standing_in.models(tmp_path, *(name for name in standing_in.MODELS if f'"{name}"' in text))
    monkeypatch.chdir(tmp_path)
    # Dataclasses look for the module that they are in.
    names: dict[str, Any] = {"__name__": "__main__"}
    lacking = []
    for block, after in zip(found, [*found[1:], None], strict=True):
        if lacks := [each for each in OPTIONAL if f'"{each}"' in block.text and find_spec(each) is None]:
            lacking.append(f"{block.name} needs {', '.join(lacks)}")
        elif block.language == "python" and block.not_run is None:
            printed = run(block, names)
            if after is not None and after.language == "text" and printed:
                assert printed == after.text, f"{block.name} prints something else than what stands below it"
    if lacking:
        pytest.skip(f"all other blocks ran; {'; '.join(lacking)}")


def run(block: Block, names: dict[str, Any]) -> str:
    """Run a block in the page's namespace and return what it prints."""
    # Dataclasses and tracebacks want the source of what was never a file.
    linecache.cache[block.name] = (len(block.text), None, block.text.splitlines(keepends=True), block.name)
    tree, out = ast.parse(block.text), io.StringIO()
    names.pop(LAST, None)
    if isinstance(last := tree.body[-1], ast.Expr):
        kept = ast.Assign([ast.Name(LAST, ast.Store())], last.value)
        tree.body[-1] = ast.fix_missing_locations(ast.copy_location(kept, last))
    with contextlib.redirect_stdout(out):
        exec(compile(tree, block.name, "exec"), names)
        show(names.get(LAST))
    return out.getvalue()


def show(value: Any) -> None:
    """Have a value make what a notebook would show of it."""
    for form in ("_repr_html_", "_repr_mimebundle_"):
        if hasattr(type(value), form):
            getattr(value, form)()
            return
    repr(value)


def test_every_fence_says_what_it_holds() -> None:
    assert [block.name for block in every() if block.language not in LANGUAGES] == []


def test_a_block_that_is_not_run_says_why_and_there_are_few() -> None:
    marked = [block for block in every() if block.not_run is not None]
    for block in marked:
        print(f"{block.name} ({block.language}) is not run: {block.not_run}")
    assert len(marked) <= MARKED


@pytest.mark.parametrize("page", ELSEWHERE)
def test_pages_that_are_run_elsewhere_are(page: str) -> None:
    source = (ROOT / ELSEWHERE[page]).read_text(encoding="utf-8")
    assert re.search(rf'"{Path(page).name}"', source)
    assert "exec(" in source

"""The README's figures are the benchmark's own."""

from __future__ import annotations

from pathlib import Path

from probe.benchmark.rendering import between_marks, markdown
from probe.benchmark.stored import read_bench

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_readme_shows_the_stored_result_as_it_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    stored = markdown(read_bench(ROOT / "docs" / "benchmark.json"))
    renewed = between_marks(text, stored, "README.md")
    assert text == renewed, "to renew it: probe bench --from docs/benchmark.json --into README.md"


def test_the_stored_result_is_of_a_whole_run() -> None:
    assert read_bench(ROOT / "docs" / "benchmark.json").complete

"""The table of models: its page is its rendering, and what it claims is true."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from probe.command.listing import listing
from probe.conformance.page import page
from probe.conformance.random_model import recipe, recipes
from probe.conformance.result import MODELS_JSON, Architecture, Conformance, RandomConfiguration, Way
from probe.conformance.run import architecture, run

ROOT = Path(__file__).parent.parent.parent
FAST = (
    *("llama3", "llama4_text", "mistral", "gemma2", "gpt2", "bloom", "falcon", "deepseek_v3", "gpt_oss", "mamba2"),
    *("qwen3_next", "falcon_h1", "t5", "bert", "diffllama"),
)
"""A dozen that between them have all that attention can have."""


@pytest.fixture(scope="module")
def table() -> Conformance:
    return Conformance.model_validate_json(MODELS_JSON.read_text(encoding="utf-8"))


def claims(found: Architecture) -> tuple[object, ...]:
    """What the table says of an architecture but the last digits."""
    return found.verdict, found.family, found.has, {name: way.verdict for name, way in found.ways.items()}


def test_the_page_is_the_rendering_of_the_table(table: Conformance) -> None:
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == page(table)


def test_the_table_has_what_is_tried_and_nothing_wrong(table: Conformance) -> None:
    assert {each.name for each in table.architectures} == set(recipes())
    assert {each.verdict for each in table.architectures} <= {"exact", "refused", "unchecked"}
    assert sum(each.verdict == "exact" for each in table.architectures if each.backend == "huggingface") >= 100
    for each in table.architectures:
        assert each.verdict == "exact" or each.reason, each.name
        assert all(way.reason for way in each.ways.values() if way.verdict != "exact")


def test_of_random_configurations_none_was_wrong_and_few_were_refused(table: Conformance) -> None:
    assert len(table.random) >= 100
    assert table.share("wrong") == 0
    assert table.share("failed") == 0
    assert table.share("refused") <= 0.05


@pytest.mark.parametrize("name", FAST)
def test_what_the_table_claims_is_true(name: str, table: Conformance) -> None:
    claimed = next(each for each in table.architectures if each.name == name and each.backend == "huggingface")
    found = architecture(recipe(name))
    if table.versions["transformers"] == version("transformers"):
        assert claims(found) == claims(claimed)
    # Another version of transformers may have other models; a wrong number is wrong in all.
    assert found.verdict not in ("wrong", "failed"), found.reason


@pytest.mark.nightly
def test_what_the_table_claims_is_true_of_all(table: Conformance) -> None:
    found = run(random=len(table.random), seed=table.seed or 0)
    claimed = {(each.name, each.backend): claims(each) for each in table.architectures}
    assert {(each.name, each.backend): claims(each) for each in found.architectures} == claimed
    assert [each.verdict for each in found.random] == [each.verdict for each in table.random]


def test_models_are_listed_from_the_table(table: Conformance) -> None:
    listed = listing("models")["models"]
    assert listed["llama3"].startswith("Llama 3.1, 3.2, 3.3, decoder: exact [GQA, RoPE")
    assert "needle" in listed
    assert all(each.name in listed for each in table.architectures)
    assert "refused: " in listed["diffllama"]
    # What is listed beside all else are models that can be run by name.
    assert "llama3" not in listing()["models"]


def test_the_page_says_what_was_found() -> None:
    ways = {
        "prefill": Way(verdict="exact", deviation=1.5e-6, compared=9),
        "chunks": Way(verdict="wrong", reason="a <b>|"),
    }
    made = Architecture(
        name="x", names="X 1", family="decoder", model_class="X", backend="huggingface", has=("GQA",), verdict="wrong",
        ways=ways,
    )  # fmt: skip
    drawn = [RandomConfiguration(architecture="x", fields={}, verdict=v) for v in ("exact", "exact", "refused")]  # type: ignore[arg-type]
    text = page(
        Conformance(versions={"torch": "2"}, tolerance=1e-5, architectures=(made,), seed=3, random=tuple(drawn))
    )
    assert "| `x` | X 1 | huggingface | GQA | exact, 2e-06 | wrong | – | – |" in text
    assert "- `x` (chunks) wrong: a ‹b›\\|" in text
    assert "Of the other 3, all four ways are exact in 2; 1 (33.3%) were refused in some way; 0 gave a wrong" in text


def test_the_command_writes_both_and_ends_with_1_where_a_number_is_wrong(tmp_path: Path) -> None:
    out, written = tmp_path / "models.json", tmp_path / "models.md"
    command = [sys.executable, "-m", "probe", "conformance", "opt", "--out", str(out), "--page", str(written), "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = Conformance.model_validate(json.loads(out.read_text(encoding="utf-8")))
    assert written.read_text(encoding="utf-8") == page(found)
    assert {each.backend for each in found.architectures} >= {"huggingface"}
    unknown = subprocess.run([*command[:4], "llama9"], cwd=ROOT, capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "llama9" in unknown.stderr

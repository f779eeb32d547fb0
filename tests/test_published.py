"""Casebooks of published figures: each is valid, makes its prompts, and says where its figure is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from probe import discovery
from probe.casebook import load
from probe.command.cli import app
from probe.errors import CasebookError

FIGURES = discovery.names("published")
WHERE = ("authors' data", "authors' code", "the paper's text", "second hand")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One that knows any text: the flip-flop and needle specimens' know their own words alone."""
    from tests.workloads.conftest import byte_level

    return byte_level()


def test_there_are_some() -> None:
    assert "retrieval-heads-llama-2-7b-80k" in FIGURES


@pytest.mark.parametrize("name", FIGURES)
def test_it_is_valid_and_says_where_its_figure_is_from(name: str) -> None:
    book = load(f"published/{name}")
    assert book.name == name
    assert book.published is not None
    assert book.published.verified.startswith(WHERE)
    assert "arXiv" in book.published.source
    assert book.published.state == "not run here"
    assert book.expect


@pytest.mark.parametrize("name", FIGURES)
def test_its_workload_makes_prompts_under_every_condition(name: str, tokenizer: Any) -> None:
    book = load(f"published/{name}")
    shortest = {"lengths": [max(min(book.build_workload().lengths), 512)]}
    for stage in book.stages:
        for condition in stage.conditions.values():
            sample = next(iter(book.build_workload({**condition.workload, **shortest}).build(tokenizer)))
            assert 0 < len(sample) <= shortest["lengths"][0]


def test_they_are_listed_apart_with_their_state() -> None:
    done = CliRunner().invoke(app, ["list", "published"])
    assert done.exit_code == 0
    for name in FIGURES:
        assert name in done.output
    assert done.output.count("not run here") == len(FIGURES)
    assert not {*FIGURES} & {*discovery.names("casebooks")}


def test_a_published_figure_without_a_source_is_refused(tmp_path: Path) -> None:
    text = Path(discovery.get("published", "sink-share-llama-2-7b")).read_text()
    path = tmp_path / "book.yaml"
    path.write_text(text.replace("  source:", "  sauce:"))
    with pytest.raises(CasebookError, match=r"10:3: published\.sauce: unknown key; did you mean 'source'"):
        load(path)

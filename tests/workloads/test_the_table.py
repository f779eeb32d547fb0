"""The table of workloads says what there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from probe import discovery
from probe.casebook import build
from probe.success import RULES
from probe.workloads.grid import Grid

TABLE = (Path(__file__).resolve().parents[2] / "docs" / "workloads.md").read_text(encoding="utf-8")
SHARED = {field.name for field in dataclasses.fields(Grid)}
OWN = {"own_prompts": {"file": "x"}, "own_documents": {"documents": "x", "questions": "y"}}


def row(name: str) -> str:
    (found,) = [line for line in TABLE.splitlines() if line.startswith(f"| `{name}` |")]
    return found


@pytest.mark.parametrize("name", discovery.names("workloads"))
def test_every_workload_has_its_row_with_every_field(name: str) -> None:
    line = row(name)
    fields = {field.name for field in dataclasses.fields(discovery.get("workloads", name))}
    assert {field for field in fields - SHARED if f"`{field}`" not in line} == set()
    rule = getattr(build("workloads", name, OWN.get(name, {})), "success_rule", "exact")
    stated = re.search(r"\| (exact|substring|all|none) \|$", line)
    assert stated is None or stated[1] == rule
    assert stated is not None or name in {"own_prompts", "own_documents", "plain_text"}


def test_the_shared_fields_and_the_rules_are_there() -> None:
    assert {name for name in {*SHARED, *RULES} if f"`{name}`" not in TABLE} == set()


def test_a_docstring_says_the_source_and_what_differs() -> None:
    for name in set(discovery.names("workloads")) - {"needle", *OWN}:
        docstring = " ".join((discovery.get("workloads", name).__doc__ or "").split())
        assert re.search(r"arXiv \d{4}\.\d{5}", docstring), name
        assert "What differs" in docstring or name == "flip_flop", name

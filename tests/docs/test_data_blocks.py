"""Every YAML block is (a part of) a casebook that loads, every JSON block one that is read, every TOML block parses."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from probe import discovery
from probe.casebook import load
from probe.errors import CasebookError
from probe.workloads.own_documents import own_documents
from probe.workloads.own_prompts import own_prompts
from tests.docs.blocks import Block, of
from tests.workloads.conftest import byte_level

YAML, JSON, TOML = of("yaml"), of("json", "jsonl"), of("toml")


def whole(part: Any) -> dict[str, Any]:
    """Return a casebook with what a block shows of one: stages, conditions, a workload, expectations, or all of it."""
    book: dict[str, Any] = {
        "format": 1,
        "name": "page",
        "question": "What does the page say?",
        "workload": {"needle": {"lengths": [256]}},
        "stages": [{"name": "read", "conditions": {"baseline": {"role": "baseline"}}}],
    }
    if isinstance(part, list):
        return {**book, "stages": part}
    if "conditions" in part and "name" not in part:
        return {**book, "stages": [{"name": "read", **part}]}
    if "expect" in part and "stages" not in part:
        shipped = yaml.safe_load(Path(discovery.get("casebooks", "first-look")).read_text(encoding="utf-8"))
        return {**shipped, **part}
    return {**book, **part}


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.name)
def test_a_casebook_loads(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "page.yaml"
    path.write_text(yaml.safe_dump(whole(yaml.safe_load(block.text)), sort_keys=False), encoding="utf-8")
    assert load(path).stages


def test_what_is_wrong_in_a_part_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "page.yaml"
    part = {"conditions": {"a": {"role": "baseline", "intervention": {"yarn": {"factr": 4}}}}}
    path.write_text(yaml.safe_dump(whole(part)), encoding="utf-8")
    with pytest.raises(CasebookError, match="factr"):
        load(path)


@pytest.mark.parametrize("block", JSON, ids=lambda block: block.name)
def test_a_line_is_read(block: Block, tmp_path: Path) -> None:
    value = json.loads(block.text)
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
    if "text" in value:
        (sample,) = own_prompts(file=str(path)).build(byte_level())
        assert sample.answer.strip() == value["answer"]
        assert {span.name for span in sample.spans} >= {*value["spans"]}
    elif "question" in value:
        texts = tmp_path / "texts"
        texts.mkdir()
        (texts / value["document"]).write_text(f"The mayor is {value['answer']}.", encoding="utf-8")
        for i in range(60):
            (texts / f"other_{i}.txt").write_text(f"In town number {i} the grass is green.", encoding="utf-8")
        workload = own_documents(documents=str(texts), questions=str(path), lengths=(512,), depths=(0.0,))
        sample = next(iter(workload.build(byte_level())))
        assert sample.answer.strip() == value["answer"]
        assert sample.answers[-1] == value["answers"][-1]
    else:
        pytest.fail(f"{block.name}: no test knows what reads it")


@pytest.mark.parametrize("block", TOML, ids=lambda block: block.name)
def test_an_entry_point_is_of_a_room(block: Block) -> None:
    for group, names in tomllib.loads(block.text)["project"]["entry-points"].items():
        top, room = group.split(".")
        assert (top, room in discovery.ROOMS) == ("probe", True)
        assert all("." in address for address in names.values())


def test_there_are_some_of_each() -> None:
    assert min(map(len, (YAML, JSON, TOML))) >= 2

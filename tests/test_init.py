"""`probe init`: the casebook it writes names every key, fits the published schema, and plays."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

import probe
from probe import casebook, strict_yaml
from probe.casebook import Casebook, PublishedFigure
from probe.command.cli import app
from probe.command.init import SCHEMA_FILE, started
from probe.expectation import Expectation
from probe.stage import Condition, FromFinding, MatchedControl, Stage

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = (ROOT / "docs" / "casebook.schema.json").read_text(encoding="utf-8")
ALTERNATIVE = re.compile(r"^( *(?:- )?)#(?=[\w-])(.*)$")


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["init", *words])


def blocks(text: str) -> list[list[int]]:
    """Line numbers of each alternative: neighbouring lines that begin with # and no space after it."""
    found: list[list[int]] = []
    for i, line in enumerate(text.splitlines()):
        if not ALTERNATIVE.match(line):
            continue
        if found and found[-1][-1] == i - 1 and not line.lstrip().startswith("#-"):
            found[-1].append(i)
        else:
            found.append([i])
    return found


def taken(text: str, block: list[int]) -> str:
    """The text with an alternative in the place of what stands for the same key in the same mapping."""
    lines = text.splitlines()
    for i in block:
        found = ALTERNATIVE.match(lines[i])
        assert found
        lines[i] = new = found[1] + found[2]
        key = re.match(r" *[\w-]+:", new)
        # The line that it replaces stands above it, among lines of its own depth.
        for j in range(i - 1, -1, -1) if key else ():
            depth = len(lines[j]) - len(lines[j].lstrip())
            if lines[j].strip() and not lines[j].lstrip().startswith("#") and depth < len(found[1]):
                break
            if key and lines[j].startswith(key[0]):
                lines[j] = ""
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "model", [Casebook, PublishedFigure, Stage, Condition, FromFinding, MatchedControl, Expectation]
)
def test_every_key_occurs(model: type[BaseModel]) -> None:
    text = started("casebook")
    assert not [key for key in model.model_fields if not re.search(rf"(?m)[ {{#]{key}:|^{key}:", text)]


def test_every_field_of_its_workload_occurs() -> None:
    text = started("casebook")
    assert not [f.name for f in fields(probe.needle) if not re.search(rf"(?m)^ +#?{f.name}: ", text)]


def test_it_and_each_of_its_alternatives_is_a_casebook() -> None:
    text, schema = started("casebook"), json.loads(PUBLISHED)
    every = blocks(text)
    assert len(every) >= 15
    for block in [[], *every]:
        variant = taken(text, block)
        document = strict_yaml.parse(variant.encode(), "casebook.yaml")
        jsonschema.validate(document.value, schema)
        casebook.check(document)


def test_what_is_commented_changes_what_is_read() -> None:
    """Guards the test above: each alternative gives another casebook than the template."""
    text = started("casebook")
    plain = yaml.safe_load(text)
    assert all(yaml.safe_load(taken(text, block)) != plain for block in blocks(text))


def test_it_is_written_with_the_schema_that_its_first_line_names(tmp_path: Path) -> None:
    done = invoke(str(tmp_path / "My question.yaml"))
    assert done.exit_code == 0, done.output
    first, _, rest = (tmp_path / "My question.yaml").read_text(encoding="utf-8").partition("\n")
    assert first == "# yaml-language-server: $schema=.casebook.schema.json"
    assert (tmp_path / ".casebook.schema.json").read_text(encoding="utf-8") == PUBLISHED
    assert yaml.safe_load(rest)["name"] == "my-question"


def test_nothing_is_replaced_without_force(tmp_path: Path) -> None:
    mine = tmp_path / "casebook.yaml"
    mine.write_text("mine")
    refused = invoke(str(mine))
    assert refused.exit_code == 2
    assert "casebook.yaml exists and stays as it is" in refused.output.replace("\n", "")
    assert mine.read_text() == "mine"
    assert not (tmp_path / SCHEMA_FILE).exists()
    assert invoke(str(mine), "--force").exit_code == 0
    # A second casebook beside it finds the same schema there.
    assert invoke(str(tmp_path / "other.yaml")).exit_code == 0


def test_one_that_ships_is_copied_with_its_comments(tmp_path: Path) -> None:
    assert invoke(str(tmp_path / "mine.yaml"), "--from", "first-look").exit_code == 0
    shipped = (ROOT / "casebooks" / "first-look" / "first-look.yaml").read_text(encoding="utf-8")
    copied = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    assert copied.partition("\n")[2] == shipped.replace("name: first-look\n", "name: mine\n")
    assert invoke(str(tmp_path / "figure.yaml"), "--from", "published/sink-share-llama-2-7b").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x.yaml", "--from", "frist-look"], "did you mean 'first-look'?"),
        (["x.yaml", "--from", "zzz"], "attention-sinks"),
        (["file/x.yaml"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    done = invoke(*words)
    assert done.exit_code == 2
    assert said in done.output
    assert not (tmp_path / "x.yaml").exists()


def test_it_plays(tmp_path: Path) -> None:
    path = tmp_path / "first.yaml"
    # Two draws of the control are as good a play as twenty.
    path.write_text(started("first").replace("draws: 20", "draws: 2"), encoding="utf-8")
    run = probe.run(path, lengths=(64,), depths=(0.0,), limit=2, out=tmp_path / "run", check=False)
    assert run.record["status"] == "complete"
    assert {f.name or f.analysis for f in run.findings()} == {"effective_length", "fetching", "head_ablation"}


@pytest.mark.slow
def test_it_shows_what_it_expects(tmp_path: Path) -> None:
    path = tmp_path / "first.yaml"
    path.write_text(started("first"), encoding="utf-8")
    run = probe.run(path, out=tmp_path / "run")
    assert [each["met"] for each in run.record["expected"]["results"]] == [True, True, True]

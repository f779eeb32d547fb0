"""What the documents say is so."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

import probe
from probe import strict_yaml
from probe.casebook import Casebook
from probe.command.cli import app
from probe.errors import ProbeError
from probe.finding import Figure, Finding, Interval, Measurement, Suggestion

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCHEMA = ROOT / "docs" / "finding.schema.json"
CASEBOOK_SCHEMA = ROOT / "docs" / "casebook.schema.json"


def schema() -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Finding.model_json_schema(mode="serialization"),
    }


def example() -> Finding:
    return Finding(
        analysis="effective_length",
        question="How far?",
        claim="256 tokens.",
        verdict="supported",
        measured=Measurement(
            name="length", value=256.0, interval=Interval(low=256, high=512, method="bootstrap"), n=20
        ),
        columns=("length", "right"),
        table=((64, 1.0), (128, None)),
        figures=(Figure(name="f", title="t", caption="c", plotly={"data": [], "layout": {}}),),
        suggests=(Suggestion(intervention="ablate_heads", fields={"heads": [[2, 5]]}, reason="r"),),
        definition="d",
        source="s",
    )


def casebook_schema() -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Casebook.model_json_schema(),
        "title": "A casebook, as YAML",
    }


def test_the_published_schema_is_the_one_of_the_code() -> None:
    """To renew it, write what this prints where they differ."""
    current = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
    assert SCHEMA.read_text(encoding="utf-8") == current, current


def test_the_published_casebook_schema_is_the_one_of_the_code() -> None:
    current = json.dumps(casebook_schema(), indent=2, ensure_ascii=False) + "\n"
    assert CASEBOOK_SCHEMA.read_text(encoding="utf-8") == current, "write it anew: see casebook_schema()"


def test_the_shipped_casebooks_fit_the_published_schema() -> None:
    published = json.loads(CASEBOOK_SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(published)
    for path in sorted((ROOT / "casebooks").glob("*/*.yaml")):
        jsonschema.validate(strict_yaml.parse(path.read_bytes(), path.name).value, published)


def test_a_finding_fits_the_published_schema_and_comes_back_equal() -> None:
    published = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(published)
    written = example().to_json()
    jsonschema.validate(written, published)
    assert Finding.from_json(json.loads(json.dumps(written))) == example()


@pytest.mark.parametrize(
    "change", [{"verdict": "maybe"}, {"surplus": 1}, {"measured": {"name": "x"}}, {"format": 2}], ids=str
)
def test_the_schema_refuses_what_is_no_finding(change: dict[str, Any]) -> None:
    published = json.loads(SCHEMA.read_text(encoding="utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(example().to_json() | change, published)


def test_the_readme_opens_with_one_line_to_run_and_one_to_test() -> None:
    first_screen = "\n".join(README.splitlines()[:25])
    commands = re.findall(r"```sh\n(.*?)\n```", first_screen, flags=re.DOTALL)
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)
    assert "pip install" in commands[0]
    assert commands[0].endswith("probe run first-look")
    assert commands[1].split("&& ")[-1].startswith(".venv/bin/pytest")


def test_continuous_integration_takes_its_line_from_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"grep -m 1 -F \"(.*?)\"", script)
    lines = [line for line in README.splitlines() if pattern in line]
    assert len(lines) == 1
    assert lines[0].startswith("python3 -m venv")
    assert subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=False).returncode == 0


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md", "docs/file-formats.md", "docs/casebooks.md"])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_the_readme_names_only_what_is_public() -> None:
    names = set(re.findall(r"\bprobe\.([a-z_]+)\(", README))
    assert names
    assert names <= set(probe._public())


def test_the_readme_names_only_options_that_exist() -> None:
    help_text = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    for line in README.splitlines():
        if "probe run" in line:
            for option in re.findall(r"--[a-z-]+", line):
                assert option in help_text, option


def test_every_exit_code_of_an_error_is_documented() -> None:
    text = (ROOT / "docs" / "file-formats.md").read_text(encoding="utf-8")
    documented = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE) for code in row.split(",")}
    kinds = [ProbeError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.exit_code for kind in kinds} | {0, 130, 143} <= documented

"""Every shell block is correct shell, every command of the toolkit in it is one that the toolkit understands."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from probe import casebook, discovery
from probe.command.cli import app
from probe.errors import ProbeError
from tests.docs.blocks import PAGES, ROOT, Block, commands, every, inline_commands, of

SHELL = of("sh", "bash", "console", "shell")
MARKED = [block for block in every() if block.language in ("sh", "bash", "console", "shell") and block.not_run]
READMES = [
    *PAGES,
    *sorted((ROOT / "casebooks").glob("*/README.md")),
    *sorted((ROOT / "casebooks").glob("*/*/README.md")),
]
PLACEHOLDERS = {"RUN", "NAME", "FILE", "DIR", "FOLDER", "MODEL", "YOURS", "OUT", "CASEBOOK", "x"}
"""What a reader puts in the place of; a casebook of these names cannot be looked for."""

OTHERS = {
    "apt-get": "Debian's, held against what .ci/run installs",
    "cd": "the shell's",
    "export": "the shell's",
    "python": "Python's",
    "python3": "Python's",
    "pip": "pip's, whose extras are held against pyproject.toml",
    "pytest": "pytest's",
    "ray": "Ray's",
    "sbatch": "Slurm's",
    "srun": "Slurm's",
    "squeue": "Slurm's",
    "kubectl": "Kubernetes'",
    "torchrun": "PyTorch's",
    "sphinx-build": "Sphinx's; tests/docs/test_site.py builds the site",
    ".ci/run": "ours; it runs these tests",
}
"""Programs that are not the toolkit, and whose they are: their blocks are held to be correct shell, and not run."""

UsageError = typer.BadParameter.__mro__[1]
"""What a command line raises that is not understood."""

RUN_HERE = ("list", "specimens")
"""Commands that need nothing and are played as they stand."""


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_it_is_correct_shell(block: Block) -> None:
    # What stands for something of the reader's, <like this>, would be a redirection.
    text = re.sub(r"<([\w-]+)>", r"\1", "\n".join(commands(block.text)))
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_every_command_is_known(block: Block) -> None:
    for command in commands(block.text):
        words = shlex.split(command)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if not words:
            continue
        program = Path(words[0]).name if words[0] != ".ci/run" else words[0]
        if program == "probe" or "probe" in words:
            understood(words[words.index("probe") + 1 :] if "probe" in words else words[1:])
        else:
            assert program in OTHERS, f"{block.name}: {command!r} runs {program!r}, which is not in the list of others'"
        if program == "pip":
            installs(words)
        if program == "apt-get":
            assert {"chromium", "chromium-driver"} >= {word for word in words[2:] if not word.startswith("-")}


@pytest.mark.parametrize("block", MARKED, ids=lambda block: block.name)
def test_commands_of_ours_in_a_block_that_is_not_run_are_understood(block: Block) -> None:
    for command in commands(block.text):
        if found := re.search(r"\bprobe [a-z].*", command):
            understood(shlex.split(found[0])[1:])


def understood(words: list[str]) -> None:
    """Raise unless the command line takes these words, and the casebook that they name takes its options."""
    if words in (["--version"], ["--help"]) or words[:1] in (["--install-completion"], ["--show-completion"]):
        return
    # Typer has a click of its own in some versions, so nothing is asked by class.
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    known = getattr(command, "commands", {})
    assert not known or command.invoke_without_command, f"there is no command {words!r}; there are {sorted(known)}"
    if "--help" in words or "-h" in words:
        return
    given = command.make_context(command.name, list(words)).params
    name = given.get("casebook")
    if name not in (None, "all", *PLACEHOLDERS) and not str(name).endswith(".yaml"):
        numbers = {
            "lengths": tuple(map(int, filter(None, (given.get("lengths") or "").split(",")))) or None,
            "depths": tuple(map(float, filter(None, (given.get("depths") or "").split(",")))) or None,
        }
        casebook.Override(**numbers).apply(casebook.load(str(name)))


def installs(words: list[str]) -> None:
    """Assert that the extras that are asked for exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words:
        for asked in re.findall(r"\[([\w,-]+)\]", word):
            assert {*asked.split(",")} <= extras.keys(), word


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_in_sentences_are_understood(path: Path) -> None:
    for command in inline_commands(path.read_text(encoding="utf-8")):
        if "…" in command or "[" in command or "|" in command:
            continue
        try:
            words = shlex.split(command, comments=True)
        except ValueError:
            continue
        try:
            understood(words[1:])
        except UsageError as error:
            # What only names a command or an option, such as `probe bench --json`, lacks what belongs to it.
            if type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):
                raise


PLAIN = sorted(
    {c for b in SHELL for c in commands(b.text) if re.match(rf"probe ({'|'.join(RUN_HERE)})\b(?!.* train)", c)}
)


@pytest.mark.parametrize("command", PLAIN)
def test_what_needs_nothing_is_played(command: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    assert discovery.names("casebooks")[0] in done.output or "needle" in done.output or "not run here" in done.output


@pytest.mark.parametrize(
    "wrong",
    ["probe run first-look --nonsense", "probe run first-luck", "probe play x", "probe run first-look --lengths"],
)
def test_a_command_that_there_is_not_is_found(wrong: str) -> None:
    with pytest.raises((UsageError, AssertionError, ProbeError)):
        understood(shlex.split(wrong)[1:])


def test_what_stands_in_the_pages_is_seen() -> None:
    asked = [command for block in SHELL for command in commands(block.text)]
    assert ".venv/bin/probe run first-look" in asked
    assert any(command.startswith("probe run first-look --model Qwen/Qwen3-0.6B --lengths") for command in asked)
    inline = {command for path in READMES for command in inline_commands(path.read_text(encoding="utf-8"))}
    assert {"probe run all", "probe list interventions", "probe run first-look"} <= {
        command.strip() for command in inline
    }

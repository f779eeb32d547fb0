"""`probe view` says what it cannot open, and serves nothing that it should not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from probe.command.cli import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 3, "nowhere is not there"),
        ([str(ROOT / "tests")], 2, "neither a run nor a trace"),
        (["RUN", "--host", "0.0.0.0"], 2, "every address"),
    ],
)
def test_what_cannot_be_is_one_message(small: Any, arguments: list[str], code: int, said: str) -> None:
    path = [str(small.path) if word == "RUN" else word for word in arguments]
    done = CliRunner().invoke(app, ["view", *path, "--no-browser"])
    assert done.exit_code == code
    assert said in done.output


def test_it_prints_its_link_and_ends_with_ctrl_c(small: Any) -> None:
    command = [sys.executable, "-m", "probe", "view", str(small.path), "--port", "0", "--no-browser"]
    environment = os.environ | {"HOST": "0.0.0.0", "PORT": "1", "DASH_DEBUG": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        link = process.stdout.readline().split(" at ")[-1].strip()
        assert link.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(link) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()

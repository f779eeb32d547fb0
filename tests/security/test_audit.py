"""The audit fails where an advisory applies, and says in one line that nobody could be asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.security.audit import ACCEPTED, Answer, asked, audit

FOUND = json.dumps(
    {
        "dependencies": [
            {"name": "fine", "version": "1", "vulns": []},
            {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-9"], "fix_versions": ["3"]}]},
            {"name": "local", "skip_reason": "not on the index"},
        ]
    }
)


def accepting(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "accepted.toml"
    path.write_text(f"[accepted]\n{text}\n")
    return path


def test_an_advisory_that_applies_fails(tmp_path: Path) -> None:
    code, said = audit(lambda: Answer(1, FOUND, ""), accepting(tmp_path, ""))
    assert (code, said) == (1, ["bad 2: PYSEC-1, mended in 3"])


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-9"])
def test_one_that_is_accepted_with_a_reason_does_not(tmp_path: Path, name: str) -> None:
    assert audit(lambda: Answer(1, FOUND, ""), accepting(tmp_path, f'"{name}" = "never called"'))[0] == 0


def test_one_without_a_reason_or_that_applies_no_more_fails(tmp_path: Path) -> None:
    assert audit(lambda: Answer(1, FOUND, ""), accepting(tmp_path, '"PYSEC-1" = " "'))[0] == 1
    code, said = audit(lambda: Answer(1, FOUND, ""), accepting(tmp_path, '"PYSEC-1" = "x"\n"PYSEC-2" = "x"'))
    assert (code, said) == (1, ["PYSEC-2 is accepted and applies no more: take it out of accepted.toml"])


@pytest.mark.parametrize(
    "answer",
    [Answer(1, "", "x\nConnectionError: no route"), Answer(0, "", ""), Answer(1, "<html>", ""), Answer(1, "{}", "")],
)
def test_where_nobody_can_be_asked_one_line_says_so_and_nothing_fails(answer: Answer) -> None:
    code, (said,) = audit(lambda: answer)
    assert code == 0
    assert said.startswith("not audited: ")


def test_a_service_that_cannot_be_reached_is_such_a_case() -> None:
    # A port that nobody listens on, and a service that is asked over it: the real pip-audit says it in its own way.
    words = "import sys, urllib.request as u; u.urlopen('http://127.0.0.1:9/', timeout=1)"
    code, (said,) = audit(lambda: asked([sys.executable, "-c", words]))
    assert code == 0
    assert "Connection refused" in said


def test_the_script_runs_by_itself_and_its_list_is_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import tests.security.audit as a; print(a.audit(lambda: a.Answer(0, '', '')))"],
        cwd=ACCEPTED.parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "not audited" in done.stdout


@pytest.mark.nightly
def test_no_known_advisory_applies_to_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = audit()
    with capsys.disabled():
        print(*said, sep="\n")
    assert code == 0, said

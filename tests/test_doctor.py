"""`probe doctor`: each line told apart from its opposites, which are planted; and nothing private in what it prints."""

from __future__ import annotations

import email
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from typer.testing import CliRunner

import probe
from probe.command import checkup, tried
from probe.command.checkup import Check
from probe.command.cli import app
from probe.kernels.scan import Scan
from probe.specimens import folders

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("version", "state", "said"),
    [
        ("2.11.0", "ok", "2.11.0"),
        ("2.13.1+cpu", "ok", "2.13.1+cpu"),
        ("2.10.9", "broken", "too old"),
        ("2.14.0", "broken", "newer than what was tried"),
        ("what?", "broken", "cannot be read"),
        (None, "missing", "not installed"),
    ],
)
def test_a_package_is_held_against_its_range(
    version: str | None, state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", of)
    found = checkup.package("torch", SpecifierSet(">=2.11,<2.14"), "pip install 'torch>=2.11,<2.14'")
    assert (found.state, found.needed) == (state, True)
    assert said in found.said
    assert not checkup.package("ray", SpecifierSet(">=2.52"), "", "ray").needed


def test_what_is_declared_is_read_from_a_checkout_and_from_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    python, needed, extras = checkup.declared()
    assert python == ">=3.11"
    assert "torch>=2.11,<2.14" in needed
    assert extras["lens"] == ["transformer-lens>=4.3"]
    assert not {"all", "docs", "test"} & {*extras}
    wheel = email.message_from_string(
        "Requires-Python: >=3.11\nProvides-Extra: ray\nProvides-Extra: test\nRequires-Dist: numpy>=2.0\n"
        "Requires-Dist: triton>=3.6; platform_system == 'Linux'\nRequires-Dist: ray>=2.52; extra == 'ray'\n"
        "Requires-Dist: pytest>=8; extra == 'test'\n"
    )
    monkeypatch.setattr(probe, "__path__", [])
    monkeypatch.setattr(metadata, "metadata", lambda name: wheel)
    python, needed, extras = checkup.declared()
    assert (python, extras) == (">=3.11", {"ray": ["ray>=2.52; extra == 'ray'"]})
    assert [each.partition(">")[0] for each in needed] == ["numpy", "triton"]


def test_each_specimen_states_every_weight_and_a_changed_byte_is_named(tmp_path: Path) -> None:
    for name, folder in folders().items():
        stated = dict(reversed(line.split()) for line in (folder / "weights.sha256").read_text().splitlines())
        assert {*stated} == {path.name for path in folder.glob("*.safetensors")} | {"tokenizer.json"}, name
    assert all(check.state == "ok" for check in checkup.specimens())
    copy = tmp_path / "needle"
    shutil.copytree(folders()["needle"], copy)
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert checkup.damaged(copy) == ["model.safetensors"]
    path.unlink()
    assert checkup.damaged(copy) == ["model.safetensors"]
    (copy / "weights.sha256").unlink()
    assert checkup.damaged(copy) == ["weights.sha256"]


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hashlib.sha256(b"abc").hexdigest() == digest
    (tmp_path / "weights.sha256").write_text(f"{digest}  a\n")
    assert checkup.damaged(tmp_path) == []


def test_a_file_system_without_locks_or_without_forced_writes_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkup.file_system(tmp_path).state == "ok"
    with monkeypatch.context() as without:
        without.setattr(fcntl, "flock", lambda *_: None)
        found = checkup.file_system(tmp_path)
    assert (found.state, found.said, found.needed) == ("broken", "two processes can hold the same lock", True)

    def refused(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    with monkeypatch.context() as without:
        without.setattr(os, "fsync", refused)
        found = checkup.file_system(tmp_path)
    assert (found.state, found.said) == ("broken", os.strerror(errno.ENOTSUP))
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_and_a_disk_that_is_full_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "LEAST_FREE_BYTES", 1 << 62)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(checkup, "PORT", taken.getsockname()[1])
        found = {check.name: check for check in checkup.machine(tmp_path)}
    assert found[f"port {checkup.PORT}"].state == "missing"
    assert (found["disk"].state, found["disk"].needed) == ("broken", True)


def test_what_is_tried_in_a_process_that_fails_is_a_line() -> None:
    (found,) = tried.tried(["no-such-backend"])
    assert found.state == "broken"
    assert "ended with status 1" in found.said
    assert "no-such-backend" in found.said


def test_the_backend_reads_the_specimen_and_the_scan_is_held_against_its_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [(check.state, check.needed) for check in tried.backend("huggingface")] == [("ok", True)]
    assert tried._held("blocked scan", "cpu", "blocked").state == "ok"
    right = Scan.finish

    def off(scan: Scan) -> Any:
        found = right(scan)
        for result in found.values() if scan.engine_name == "blocked" else ():
            result.values.mul_(1.01)
        return found

    monkeypatch.setattr(Scan, "finish", off)
    assert tried._held("blocked scan", "cpu", "blocked").state == "broken"


def planted(**given: Any) -> Any:
    def packages() -> Iterator[Check]:
        yield Check("packages", "ray [ray]", "broken", "2.1 is too old", "pip install ray")
        yield Check("packages", "torch", said="why", needed=True, **given)

    return packages


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("missing", 3), ("broken", 3)])
def test_only_what_is_needed_decides_the_exit_code(state: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "packages", planted(state=state, cure="pip install torch"))
    done = CliRunner().invoke(app, ["doctor", "--quick"])
    assert done.exit_code == code
    assert "ray [ray]: 2.1 is too old" in done.output
    assert ("pip install torch" in done.output) == (state != "ok")


def test_json_holds_every_line_and_nothing_of_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home-of-jane"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["doctor", "--quick", "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 0, done.output
    assert told["probe"] == probe.__version__
    assert {"packages", "machine", "specimens", "tools"} == {check["group"] for check in told["checks"]}
    for secret in ("jane", "hf_secret", str(tmp_path), socket.gethostname(), sys.prefix):
        assert secret not in done.stdout


def test_places_are_taken_out_of_an_errors_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    text = f"{tmp_path}/work/runs is no folder, {tmp_path}/.cache is, and {sys.prefix}/lib"
    assert checkup.without_places(text) == "./runs is no folder, ~/.cache is, and <environment>/lib"


@pytest.mark.slow
def test_all_of_it_works_here() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "probe", "doctor", "--json"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["huggingface"]["state"] == found["blocked scan"]["state"] == "ok"
    assert not [check for check in found.values() if check["state"] == "broken"]

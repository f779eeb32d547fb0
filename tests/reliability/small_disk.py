"""Plays the small run on a file system of a few MB that fills up; `unshare -rm python -m tests.reliability.small_disk`.

The file system is in memory, and seen by nobody but this process. For each number of bytes that are left free (the
arguments) one line of JSON is printed: how the run ended, what it said, what could be read then, and what came of it
when there was room again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from typer.testing import CliRunner

import probe
from probe.command.cli import app
from probe.storage.checking import check_run
from tests.faults import BOOK
from tests.reliability.same_run import content

SIZE = 32 * 2**20


def main() -> None:
    """Fill the disk for each argument."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", place], check=True)
        (Path(place) / "small.yaml").write_text(BOOK, encoding="utf-8")
        expected = None
        for free in (SIZE, *map(int, sys.argv[1:])):
            out, filler = Path(place) / "run", Path(place) / "filler"
            with filler.open("wb") as file:
                file.write(bytes(_free(place) - free) if free < SIZE else b"")
            code, said = _play(out)
            units = probe.open(out).units if (out / "run.json").exists() else ()  # type: ignore[union-attr]
            damaged = [str(each) for unit in units for each in probe.open(out).trace(unit).verify()]  # type: ignore[union-attr]
            filler.unlink()
            again, _ = _play(out)
            found = content(out)
            expected = expected or found
            told = {"free": free, "code": code, "said": said, "units": len(units), "damaged": damaged, "again": again}
            print(json.dumps({**told, "whole": check_run(out) == [], "same": found == expected}), flush=True)
            subprocess.run(["rm", "-r", str(out)], check=True)
        subprocess.run(["umount", place], check=True)


def _play(out: Path) -> tuple[int, list[str]]:
    done = CliRunner().invoke(app, ["run", str(out.parent / "small.yaml"), "--out", str(out), "--quiet"])
    return done.exit_code, done.stderr.splitlines()


def _free(place: str) -> int:
    there = os.statvfs(place)
    return there.f_bavail * there.f_frsize


if __name__ == "__main__":
    main()

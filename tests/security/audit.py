"""Hold the installed packages against known advisories: `python tests/security/audit.py`.

Exit 0 where none applies that is not accepted with a reason, or where nobody could be asked, which is said in one line;
exit 1 where one applies, or an accepted one no longer does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

ACCEPTED: Final = Path(__file__).with_name("accepted-advisories.toml")
COMMAND: Final = (sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off", "--skip-editable")


class Answer(NamedTuple):
    """What pip-audit said."""

    code: int
    """Its exit code: 0 nothing found, 1 something found or nobody reached."""
    out: str
    """What it printed: JSON, where it was answered."""
    err: str
    """What it complained of."""


def asked(command: Sequence[str] = COMMAND) -> Answer:
    """Ask the advisory service."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except subprocess.TimeoutExpired:
        return Answer(1, "", "no answer within ten minutes")
    return Answer(done.returncode, done.stdout, done.stderr)


def audit(ask: Callable[[], Answer] = asked, accepted: Path = ACCEPTED) -> tuple[int, list[str]]:
    """Return the exit code and what to print."""
    known: dict[str, str] = tomllib.loads(accepted.read_text(encoding="utf-8")).get("accepted", {})
    if bare := [name for name, reason in known.items() if not str(reason).strip()]:
        return 1, [f"{accepted.name}: {', '.join(bare)} has no reason"]
    answer = ask()
    try:
        packages: list[dict[str, Any]] = json.loads(answer.out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (answer.err.strip() or answer.out.strip() or "no answer").splitlines()[-1]
        return 0, [f"not audited: the advisory service could not be asked ({last[:200]})"]
    said, seen = [], set()
    for package in packages:
        for advisory in package.get("vulns", ()):
            names = {advisory["id"], *advisory.get("aliases", ())}
            seen |= names & set(known)
            if not names & set(known):
                fixed = ", ".join(advisory.get("fix_versions", ())) or "no version yet"
                said.append(f"{package['name']} {package['version']}: {advisory['id']}, mended in {fixed}")
    said += [f"{name} is accepted and applies no more: take it out of {accepted.name}" for name in set(known) - seen]
    return (1 if said else 0), said or [f"{len(packages)} packages, no advisory that applies and is not accepted"]


if __name__ == "__main__":
    code, lines = audit()
    print("\n".join(lines))
    sys.exit(code)

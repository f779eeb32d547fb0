"""The specimens that ship: where they lie, what they are, and whether one that was trained anew is like them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import probe
from probe.errors import ProbeError, UsageError

SCRIPTS: Final = ("train.py", "measure.py")
"""What stands beside a specimen's weights: what made them, and what measured them."""


def folders() -> dict[str, Path]:
    """Return the folders of the specimens that ship, by name."""
    found: dict[str, Path] = {}
    for root in probe.__path__:
        for config in sorted(Path(root, "casebooks", "specimens").glob("*/config.json")):
            found.setdefault(config.parent.name, config.parent)
    return dict(sorted(found.items()))


def about(folder: Path) -> dict[str, Any]:
    """Return what a specimen is, as JSON values: what its card's first sentence and its `specimen.json` say."""
    record = _record(folder)
    return {
        "description": card_sentence(folder / "README.md"),
        "phenomena": record.get("phenomena", []),
        "engineered": record.get("engineered"),
        "trained_length": record.get("trained_length"),
        "megabytes": round(sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6, 1),
        "can_be_trained": not _lacks(folder),
    }


@dataclass(frozen=True)
class Compared:
    """One figure of a specimen that was trained anew."""

    figure: str
    """Its name."""
    value: float | None
    """What was measured; None where `measure.py` gave no such figure, or none that is a number."""
    low: float | None
    """Least value that the specimen's card allows; None where it states no bounds."""
    high: float | None
    """Largest value that it allows."""

    @property
    def within(self) -> bool:
        """Whether the figure is what the card says, or the card says nothing of it."""
        if self.low is None or self.high is None:
            return True
        return self.value is not None and self.low <= self.value <= self.high


def train(name: str, out: Path, *, seed: int = 0) -> list[Compared]:
    """Train a specimen anew into the folder `out`, measure it, and compare its figures with the bounds on its card.

    It runs `train.py --out OUT --seed SEED` and `measure.py OUT --seed SEED --json FILE` of the specimen's folder, and
    their output goes to standard error. Raises UsageError for a name that is none, a specimen without scripts or
    bounds, and a folder that exists; ProbeError where a script fails.
    """
    known = folders()
    if name not in known:
        raise UsageError(f"there is no specimen {name!r}; there are {', '.join(known) or 'none'}")
    folder = known[name]
    if lacks := _lacks(folder):
        raise UsageError(f"the specimen {name!r} cannot be trained anew: {lacks}")
    if out.exists():
        raise UsageError(f"{out} exists; it stays as it is")
    _script(folder / "train.py", "--out", str(out), "--seed", str(seed))
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch, "figures.json")
        _script(folder / "measure.py", str(out), "--seed", str(seed), "--json", str(figures))
        if not figures.is_file():
            raise ProbeError(f"{folder / 'measure.py'} wrote no figures")
        measured = json.loads(figures.read_text(encoding="utf-8"))
    return compared(measured, _record(folder)["bounds"])


def compared(measured: dict[str, Any], bounds: dict[str, Any]) -> list[Compared]:
    """Return each figure beside its bounds: those with bounds first, then what else was measured."""
    rows = [Compared(figure, _number(measured.get(figure)), *map(float, ends)) for figure, ends in bounds.items()]
    rest = [figure for figure in measured if figure not in bounds]
    return rows + [Compared(figure, _number(measured[figure]), None, None) for figure in rest]


def card_sentence(card: Path) -> str:
    """Return the first sentence of prose in a model card, past its front matter and headings."""
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8")
    if text.startswith("---"):
        text = text.partition("\n---")[2].partition("\n")[2]
    for paragraph in text.split("\n\n"):
        line = " ".join(paragraph.split())
        if line and not line.startswith(("#", "|", "<", "```", "![")):
            end = line.find(". ")
            return line[: end + 1] if end > 0 else line
    return ""


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "specimen.json"
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record


def _lacks(folder: Path) -> str:
    """Return what is missing to train a specimen anew and compare it; empty where nothing is."""
    missing = [script for script in SCRIPTS if not (folder / script).is_file()]
    if missing:
        return f"it has no {' and no '.join(missing)}"
    return "" if _record(folder).get("bounds") else "its specimen.json states no bounds"


def _script(script: Path, *arguments: str) -> None:
    # The script imports this toolkit, which need not be installed.
    paths = [str(Path(probe.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    done = subprocess.run([sys.executable, str(script), *arguments], env=environment, stdout=2, check=False)
    if done.returncode:
        raise ProbeError(f"{script} ended with status {done.returncode}; its own output stands above")

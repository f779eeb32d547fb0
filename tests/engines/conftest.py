"""A small casebook with everything that a worker has to do, and the run of it by one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import probe
from probe.casebook import Casebook
from tests.reliability.same_run import content

BOOK = {
    "format": 1,
    "name": "small",
    "question": "Does it matter who reads?",
    "model": "needle",
    "workload": {"needle": {"lengths": [64], "depths": [0.0], "samples": 2}},
    "stages": [
        {
            "name": "read",
            "conditions": {
                "baseline": {"role": "baseline", "capture": True},
                "absent": {"role": "needle_absent", "workload": {"needle": "absent"}},
                "near": {"role": "treatment", "capture": True, "intervention": {"limit_distance": {"window": 16}}},
            },
            "analyses": ["effective_length", {"retrieval_heads": {"half": "find"}}],
        },
        {
            "name": "ablate",
            "half": "test",
            "conditions": {
                "removed": {"role": "treatment", "intervention": {"from_finding": "retrieval_heads", "top": 2}},
                "others": {"role": "control", "intervention": {"matched_to": "removed", "draws": 2}},
            },
            "analyses": ["head_ablation"],
        },
    ],
}
"""Behaviour alone and attention, an intervention on calls, heads that a finding names, and controls matched to them."""


class Told:
    """Hears what a run tells."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: list[str] = []
        self.at: Any = None

    def start(self, total: int) -> None: ...

    def advance(self, what: str) -> None:
        self.done.append(what)
        if self.at is not None:
            self.at(len(self.done))

    def message(self, text: str) -> None:
        self.said.append(text)

    def stop(self) -> None: ...


def same(folder: Path) -> dict[str, Any]:
    """Return what a run holds but for its record, which says who read it."""
    return {name: held for name, held in content(folder).items() if name not in ("run.json", "run.copy.json")}


@pytest.fixture(scope="session")
def book() -> Casebook:
    return Casebook.model_validate(BOOK)


@pytest.fixture(scope="session")
def alone(book: Casebook, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    probe.run(book, out=out)
    return out


@pytest.fixture
def told() -> Told:
    return Told()

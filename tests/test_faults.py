"""Every write of a run, killed, failed or torn: what is on the disk opens, and the run goes on to what it would be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probe
from probe import capture
from probe.storage.checking import check_run
from probe.storage.store import RunStore
from tests.faults import play

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("kill", "fail", "tear")

Spoil = Callable[..., tuple[int, int]]


@pytest.fixture(scope="module")
def spoil() -> Iterator[Spoil]:
    """Play with a write spoilt, in a process of its own; gives how it ended and the number of its writes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(out: Path, kind: str = "", at: int = -1) -> tuple[int, int]:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps({"out": str(out), "kind": kind, "at": at}) + "\n")
            server.stdin.flush()
            told = json.loads(server.stdout.readline())
            return told["code"], told["count"]

        yield ask
        server.stdin.close()


@pytest.fixture(scope="module")
def whole(spoil: Spoil, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Return an undisturbed run, and the number of its writes."""
    out = tmp_path_factory.mktemp("whole") / "run"
    code, count = spoil(out)
    assert code == 0
    return out, count


def arrays(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {
        f"{trace.unit}/{name}": trace.dataset[name].values
        for trace in probe.open(folder).traces()  # type: ignore[union-attr]
        for name in trace
    }


def recovers(spoil: Spoil, whole: Path, out: Path, kind: str, at: int) -> None:
    """Spoil one write, see that what is there is sound, go on, and hold the end against the undisturbed run."""

    code, _ = spoil(out, kind, at)
    assert code in ({1, 0} if kind == "fail" else {137, 0}), f"{kind} {at}: ended with {code}"
    committed = 0
    if (out / "run.json").exists():
        run = probe.open(out)
        assert isinstance(run, probe.Run)
        committed = len(run)
        for unit in run.units:
            assert run.trace(unit).verify() == []
    assert spoil(out)[0] == 0, f"{kind} {at}: it does not go on"
    assert check_run(out) == []
    ended, expected = (json.loads((each / "findings.json").read_text()) for each in (out, whole))
    assert ended == expected, f"{kind} {at}"
    ours, theirs = arrays(out), arrays(whole)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ours)
    assert committed <= len(probe.open(out))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_some_writes_are_spoilt_and_the_run_goes_on(
    spoil: Spoil, whole: tuple[Path, int], tmp_path: Path, kind: str
) -> None:
    undisturbed, count = whole
    assert count > 100
    # The first record, a unit, the second stage, the findings.
    places = {"kill": [2, 70], "fail": [count // 2], "tear": [count - 9]}[kind]
    for at in places:
        recovers(spoil, undisturbed, tmp_path / f"run-{at}", kind, at)


def test_units_that_were_read_for_other_findings_are_taken_out(
    whole: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out, read = probe.load("needle"), tmp_path / "run", capture.read

    def fails(loaded: Any, sample: Any, *rest: Any, **options: Any) -> Any:
        if "-1.00-" in sample.name:
            raise RuntimeError("planted")
        return read(loaded, sample, *rest, **options)

    with monkeypatch.context() as planted:
        planted.setattr(capture, "read", fails)
        play(model, out)
    store = RunStore(out)
    # As if the heads of this stage had been others: the same stage and sample, another name.
    trace = next(iter(probe.open(out).traces()))  # type: ignore[union-attr]
    about: dict[str, Any] = {"stage": "ablate", "condition": "removed", "facts": {"role": "treatment"}}
    with store, store.begin_unit("removed-0-of-others", sample=trace.sample, **about) as unit:
        unit.commit(trace.outcome)
    play(model, out)
    run, undisturbed = probe.open(out), probe.open(whole[0])
    assert isinstance(run, probe.Run)
    assert isinstance(undisturbed, probe.Run)
    assert set(run.units) == set(undisturbed.units)
    assert [f.to_json() for f in run.findings()] == [f.to_json() for f in undisturbed.findings()]
    assert check_run(out) == []


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_every_write_is_spoilt_and_the_run_goes_on(
    spoil: Spoil, whole: tuple[Path, int], tmp_path: Path, kind: str
) -> None:
    undisturbed, count = whole
    for at in range(1, count + 1):
        recovers(spoil, undisturbed, tmp_path / f"run-{at}", kind, at)

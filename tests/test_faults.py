"""Every write of a run, killed, failed or torn: what is on the disk opens, and the run goes on to what it would be.

A child is forked for each fault, so that nothing of Python's own cleans up behind a kill. A write is a file that is
opened to be written, a rename, or bytes forced to the disk.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probe
from probe import capture
from probe.storage.checking import check_run
from probe.storage.store import RunStore

BOOK = """
format: 1
name: small
question: Does it go on?
model: needle
workload: {needle: {lengths: [64], depths: [0.0, 1.0], samples: 2}}
stages:
  - name: read
    conditions:
      baseline: {role: baseline, capture: true}
    capture: [entropy]
    analyses:
      - retrieval_heads: {half: find}
  - name: ablate
    half: test
    conditions:
      removed: {role: treatment, intervention: {from_finding: retrieval_heads}}
    analyses:
      - compare_conditions: {half: test}
"""
KINDS = ("kill", "fail", "tear")


class Faults:
    """Counts the writes below a folder, and spoils the n-th."""

    def __init__(self, below: Path, kind: str = "", at: int = -1) -> None:
        self.below, self.kind, self.at, self.count = str(below), kind, at, 0

    def install(self) -> None:
        """Put the shim in the place of the calls that every writer of ours goes through."""
        opened, replaced, synced = io.open, os.replace, os.fsync
        faults = self

        def open_(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if any(letter in mode for letter in "wax+") and str(file).startswith(faults.below):
                faults.step(lambda: _torn(opened, file))
            return opened(file, mode, *rest, **options)

        def replace(source: Any, target: Any, **options: Any) -> None:
            if str(target).startswith(faults.below):
                faults.step(lambda: None)
            replaced(source, target, **options)

        def fsync(descriptor: int) -> None:
            faults.step(lambda: None)
            synced(descriptor)

        io.open = open_  # type: ignore[assignment]
        os.replace = os.rename = replace  # type: ignore[assignment]
        os.fsync = fsync

    def step(self, tear: Callable[[], None]) -> None:
        """Count a write; at the one that is to be spoilt, spoil it."""
        self.count += 1
        if self.count != self.at:
            return
        if self.kind == "fail":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.kind == "tear":
            tear()
        os.kill(os.getpid(), signal.SIGKILL)


def _torn(opened: Any, file: Any) -> None:
    with opened(file, "wb") as part:
        part.write(b'{"half": ')
        part.flush()


@pytest.fixture(scope="module")
def model() -> Any:
    return probe.load("needle")


def written(folder: Path) -> Path:
    """Return the casebook's file, beside the runs."""
    path = folder / "small.yaml"
    if not path.exists():
        path.write_text(BOOK, encoding="utf-8")
    return path


def play(model: Any, out: Path) -> None:
    probe.run(written(out.parent), model=model, out=out, check=False)


def forked(work: Callable[[], None]) -> int:
    """Do something in a child, and return how it ended: 0, 1 for an error, 128 + the signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except OSError:
            pass
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            code = 2
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


@pytest.fixture(scope="module")
def whole(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Return an undisturbed run, and the number of its writes."""
    out = tmp_path_factory.mktemp("whole") / "run"
    told = out.with_name("count")

    def counted() -> None:
        written(out.parent)
        faults = Faults(out)
        faults.install()
        play(model, out)
        told.write_text(str(faults.count))

    assert forked(counted) == 0
    return out, int(told.read_text())


def arrays(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {
        f"{trace.unit}/{name}": trace.dataset[name].values
        for trace in probe.open(folder).traces()  # type: ignore[union-attr]
        for name in trace
    }


def recovers(model: Any, whole: Path, out: Path, kind: str, at: int) -> None:
    """Spoil one write, see that what is there is sound, go on, and hold the end against the undisturbed run."""

    def spoilt() -> None:
        Faults(out, kind, at).install()
        play(model, out)

    code = forked(spoilt)
    assert code in ({1, 0} if kind == "fail" else {137, 0}), f"{kind} {at}: ended with {code}"
    committed = 0
    if (out / "run.json").exists():
        run = probe.open(out)
        assert isinstance(run, probe.Run)
        committed = len(run)
        for unit in run.units:
            assert run.trace(unit).verify() == []
    assert forked(lambda: play(model, out)) == 0, f"{kind} {at}: it does not go on"
    assert check_run(out) == []
    ended, expected = (json.loads((each / "findings.json").read_text()) for each in (out, whole))
    assert ended == expected, f"{kind} {at}"
    ours, theirs = arrays(out), arrays(whole)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ours)
    assert committed <= len(probe.open(out))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_some_writes_are_spoilt_and_the_run_goes_on(
    model: Any, whole: tuple[Path, int], tmp_path: Path, kind: str
) -> None:
    undisturbed, count = whole
    assert count > 100
    # The first record, a unit, the second stage, the findings.
    places = {"kill": [2, 70], "fail": [count // 2], "tear": [count - 9]}[kind]
    for at in places:
        recovers(model, undisturbed, tmp_path / f"run-{at}", kind, at)


def test_units_that_were_read_for_other_findings_are_taken_out(
    model: Any, whole: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, read = tmp_path / "run", capture.read

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
    model: Any, whole: tuple[Path, int], tmp_path: Path, kind: str
) -> None:
    undisturbed, count = whole
    for at in range(1, count + 1):
        recovers(model, undisturbed, tmp_path / f"run-{at}", kind, at)

"""Every write of a run, killed, failed or torn: what is on the disk opens, and the run goes on to what it would be."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import probe
from probe import capture
from probe.storage.checking import check_run
from probe.storage.store import RunStore
from tests.faults import Play, Played, play, served
from tests.reliability.figures import Measured
from tests.reliability.same_run import content

KINDS = ("kill", "fail", "tear")


@pytest.fixture(scope="module")
def spoil() -> Iterator[Play]:
    """Play with a write spoilt, in a process of its own."""
    with served() as ask:
        yield ask


@pytest.fixture(scope="module")
def whole(spoil: Play, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Played]:
    """Return an undisturbed run, and what it wrote."""
    out = tmp_path_factory.mktemp("whole") / "run"
    played = spoil(out)
    assert played.code == 0
    return out, played


def recovers(spoil: Play, whole: Path, out: Path, kind: str, at: int) -> None:
    """Spoil one write, see that what is there is sound, go on, and hold the end against the undisturbed run."""
    out.parent.mkdir()
    code = spoil(out, kind, at).code
    assert code in ({1, 0} if kind == "fail" else {137, 0}), f"{kind} {at}: ended with {code}"
    committed = 0
    if (out / "run.json").exists():
        run = probe.open(out)
        assert isinstance(run, probe.Run)
        committed = len(run)
        for unit in run.units:
            assert run.trace(unit).verify() == []
    assert spoil(out).code == 0, f"{kind} {at}: it does not go on"
    assert check_run(out) == []
    assert content(out) == content(whole), f"{kind} {at}"
    assert committed <= len(probe.open(out))  # type: ignore[arg-type]
    shutil.rmtree(out.parent)


@pytest.mark.parametrize("kind", KINDS)
def test_some_writes_are_spoilt_and_the_run_goes_on(
    spoil: Play, whole: tuple[Path, Played], tmp_path: Path, kind: str
) -> None:
    undisturbed, played = whole
    assert played.writes > 100
    # A unit, the second stage, the findings.
    places = {"kill": [70], "fail": [played.writes // 2], "tear": [played.opened[-3]]}[kind]
    for at in places:
        recovers(spoil, undisturbed, tmp_path / str(at) / "run", kind, at)


def test_units_that_were_read_for_other_findings_are_taken_out(
    whole: tuple[Path, Played], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    spoil: Play, whole: tuple[Path, Played], tmp_path: Path, kind: str, measured: Measured
) -> None:
    undisturbed, played = whole
    # Of what opens no file nothing can stand there half: torn, it is killed.
    places = played.opened if kind == "tear" else range(1, played.writes + 1)
    wrong = []
    for at in places:
        try:
            recovers(spoil, undisturbed, tmp_path / str(at) / "run", kind, at)
        except (AssertionError, probe.ProbeError) as error:
            wrong.append(f"{kind} {at}: {error}")
    assert not wrong, "\n".join(wrong)
    how = {"kill": "killed", "fail": "failed with ENOSPC", "tear": "torn, with a kill"}[kind]
    measured("every write", f"{len(places)} of {len(places)} writes {how}: all recover, bytes equal")


@dataclass
class Killed:
    """What came of kills at random moments of runs, each of which then went on to its end."""

    runs: int = 0
    kills: int = 0
    committed: list[int] = field(default_factory=list)
    """Units that were committed when a kill came, of each kill."""
    redone: list[int] = field(default_factory=list)
    """Units that had been begun before a kill and were begun again after it, of each kill."""


def killed(play: Play, undisturbed: tuple[Path, Played], folder: Path, kills: int, seed: int) -> Killed:
    """Kill runs so often in all, one to three times each, at moments drawn evenly from a whole run's length."""
    draws, found = random.Random(seed), Killed()
    expected, whole = content(undisturbed[0]), undisturbed[1]
    while found.kills < kills:
        folder.joinpath("killed").mkdir()
        out = folder / "killed" / "run"
        begun, committed = set[str](), set[str]()
        moments = [draws.uniform(0, whole.seconds) for _ in range(draws.choice((1, 1, 2, 3)))]
        for after in [*moments[: kills - found.kills], None]:
            ended = play(out, after=after)
            assert not committed & set(ended.begun)
            if begun:
                found.redone.append(len(begun & set(ended.begun)))
            begun |= set(ended.begun)
            # One that had ended when its moment came was not killed.
            if ended.code == 0:
                break
            assert ended.code == 137
            committed = set(probe.open(out).units) if (out / "run.json").exists() else set()  # type: ignore[union-attr]
            found.committed.append(len(committed))
            found.kills += 1
        assert ended.code == 0
        assert check_run(out) == []
        assert content(out) == expected
        assert begun == set(whole.begun)
        found.runs += 1
        shutil.rmtree(folder / "killed")
    return found


def test_a_run_is_killed_at_a_few_random_moments(spoil: Play, whole: tuple[Path, Played], tmp_path: Path) -> None:
    found = killed(spoil, whole, tmp_path, 2, seed=131)
    assert max(found.redone, default=0) <= 1


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_a_run_is_killed_at_200_random_moments(
    spoil: Play, whole: tuple[Path, Played], tmp_path: Path, measured: Measured
) -> None:
    found = killed(spoil, whole, tmp_path, 200, seed=0)
    assert found.kills == 200
    assert max(found.redone) == 1
    # Kills fell before the first unit, between any two, and after the last.
    assert set(found.committed) == set(range(7))
    measured(
        "kill -9",
        f"{found.kills} kills in {found.runs} runs: findings, report and every array equal byte for byte; "
        f"{sum(found.redone)} units redone, at most {max(found.redone)} per kill",
    )

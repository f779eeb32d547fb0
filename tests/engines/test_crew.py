"""Who reads a unit changes nothing, whoever dies on the way: over a Ray of this process, whose actors die on demand."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probe
from probe.casebook import Casebook
from probe.command.cli import app
from probe.engines.ray_worker import Worker
from probe.engines.unit import Unit, UnitRead
from probe.engines.unit_reader import UnitReader
from probe.errors import (
    DeviceLost,
    NotAvailable,
    NotReproducible,
    RunFolderInUse,
    StoppedByLimit,
    StoreCorrupt,
    UsageError,
)
from probe.limits import Limits
from probe.storage.checking import check_run
from probe.storage.handed_over import HandedOver, posted
from probe.storage.store import RunStore
from tests.engines.conftest import BOOK, Told, same
from tests.engines.fake_ray import FakeRay

CREW = {"ray": {"workers": 2}}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def committed(out: Path) -> list[list[int]]:
    return [json.loads(line)["place"] for line in (out / "commits.jsonl").read_text().splitlines()]


def test_a_run_by_workers_holds_what_one_process_gives(
    ray: FakeRay, book: Casebook, alone: Path, tmp_path: Path, told: Told
) -> None:
    run = probe.run(book, out=tmp_path / "run", engine=CREW, progress=told)
    assert same(tmp_path / "run") == same(alone)
    assert run.verify() == []
    assert run.record["status"] == "complete"
    assert run.record["engine"]["ray"]["workers"] == 2
    assert len(ray.actors) == 2
    assert ray.asked == [{"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}] * 2
    assert sum("2 of 2 workers" in what and "units/s" in what for what in told.done) == len(run)
    assert not [path.name for path in (tmp_path / "run").rglob("*~*")]
    assert not list((tmp_path / "run").glob(".engine*"))
    # What is there already takes no worker.
    probe.run(book, out=tmp_path / "run", engine=CREW)
    assert len(ray.actors) == 2


def test_the_order_of_commits_changes_nothing(book: Casebook, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    probe.run(book, out=out)
    lines = (out / "commits.jsonl").read_text().splitlines(keepends=True)
    (out / "commits.jsonl").write_text("".join(reversed(lines)))
    assert committed(out) == sorted(committed(alone), reverse=True)
    opened = probe.open(out)
    assert isinstance(opened, probe.Run)
    assert [record["place"] for record in opened.units.values()] == committed(alone)
    (out / "findings.json").unlink()
    probe.run(book, out=out)
    assert same(out) == same(alone)


def test_a_record_without_places_keeps_its_order(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(alone, out)
    records = [json.loads(line) for line in (out / "commits.jsonl").read_text().splitlines()]
    backwards = {record["unit"]: record for record in reversed(records)}
    for record in backwards.values():
        del record["place"], record["checksum"]
    with RunStore(out) as store:
        store.make_ready()
        store._commits.rewrite(out / "commits.jsonl", backwards)
    opened = probe.open(out)
    assert isinstance(opened, probe.Run)
    assert list(opened.units) == list(backwards)


def test_what_a_dead_worker_had_is_read_by_others(
    ray: FakeRay, book: Casebook, alone: Path, tmp_path: Path, told: Told
) -> None:
    left: dict[tuple[int, int], int] = {(0, 1): 2, (0, 4): 1, (1, 0): 1}

    def dies(method: str, *arguments: Any) -> bool:
        if method != "read":
            return False
        unit = arguments[0]
        left[unit.place] = left.get(unit.place, 0) - 1
        if left[unit.place] >= 0:
            # What such a worker leaves behind.
            aside = tmp_path / "run" / "trace.zarr" / f"{unit.id}~0a1b2c3d"
            aside.mkdir(exist_ok=True)
            (aside / ".probe-unit").touch()
        return left[unit.place] >= 0

    ray.dies = dies
    probe.run(book, out=tmp_path / "run", engine=CREW, progress=told)
    assert same(tmp_path / "run") == same(alone)
    assert check_run(tmp_path / "run") == []
    assert sum("a worker died" in said for said in told.said) == 4
    assert len(ray.actors) > 2


def test_a_unit_that_kills_every_worker_is_named_and_the_others_go_on(
    ray: FakeRay, book: Casebook, alone: Path, tmp_path: Path
) -> None:
    ray.dies = lambda method, *arguments: method == "read" and arguments[0].place == (0, 3)
    run = probe.run(book, out=tmp_path / "run", engine=CREW)
    assert run.record["status"] == "partial"
    (failed,) = run.record["failed"]
    assert failed["condition"] == "absent"
    assert failed["why"] == "3 workers died while they read it: Worker exit detail: killed"
    assert len(run) == len(committed(alone)) - 1
    ray.dies = lambda *_: False
    assert probe.run(book, out=tmp_path / "run", engine=CREW).record["status"] == "complete"
    assert same(tmp_path / "run") == same(alone)


def test_a_worker_whose_device_is_lost_is_replaced(
    ray: FakeRay, book: Casebook, alone: Path, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, lost = UnitReader.read, [True]

    def once(self: UnitReader, unit: Unit, store: Any) -> UnitRead:
        if lost and unit.place == (0, 2):
            lost.clear()
            raise DeviceLost("cuda:0 has fallen off the bus")
        return read(self, unit, store)

    monkeypatch.setattr(UnitReader, "read", once)
    probe.run(book, out=tmp_path / "run", engine=CREW, progress=told)
    assert same(tmp_path / "run") == same(alone)
    assert len(ray.actors) == 3


def test_workers_that_die_before_they_read_end_the_run(ray: FakeRay, book: Casebook, tmp_path: Path) -> None:
    ray.dies = lambda method, *_: method == "open"
    with pytest.raises(NotAvailable, match="3 workers died before they had opened the model: Worker exit"):
        probe.run(book, out=tmp_path / "run", engine=CREW)
    assert len(ray.actors) <= 4


def test_what_fails_is_said_in_the_words_of_one_process(
    ray: FakeRay, book: Casebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probe import capture

    read = capture.read

    def failing(model: Any, sample: Any, *arguments: Any, **options: Any) -> Any:
        if sample.name.endswith("-s1"):
            raise ValueError("an odd shape")
        return read(model, sample, *arguments, **options)

    monkeypatch.setattr(capture, "read", failing)
    ours, theirs = (probe.run(book, out=tmp_path / name, engine=name) for name in ("local", "ray"))
    assert ours.record["failed"] == theirs.record["failed"] != []
    assert same(tmp_path / "local") == same(tmp_path / "ray")


@pytest.mark.parametrize(
    ("error", "kind"), [(NotReproducible("its own way"), NotReproducible), (OSError(errno.ENOSPC, "full"), OSError)]
)
def test_what_ends_a_run_ends_it(
    ray: FakeRay, book: Casebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type
) -> None:
    def ends(*_: Any) -> None:
        raise error

    monkeypatch.setattr(UnitReader, "read", ends)
    with pytest.raises(kind, match=r"its own way|full"):
        probe.run(book, out=tmp_path / "run", engine=CREW)
    assert not any(actor.alive for actor in ray.actors)
    opened = probe.open(tmp_path / "run")
    assert isinstance(opened, probe.Run)
    assert opened.record["status"] == "stopped"


def test_at_a_limit_what_is_being_read_is_read_to_its_end(
    ray: FakeRay, book: Casebook, alone: Path, tmp_path: Path
) -> None:
    class Counting(Limits):
        asked = 0

        def check(self, folder: Path) -> None:
            self.asked += 1
            if self.asked > 5:
                raise StoppedByLimit("enough")

    with pytest.raises(StoppedByLimit, match="enough"):
        probe.run(book, out=tmp_path / "run", engine=CREW, limits=Counting())
    assert len(committed(tmp_path / "run")) == 5
    probe.run(book, out=tmp_path / "run")
    assert same(tmp_path / "run") == same(alone)


def test_no_unit_is_begun_that_the_disk_has_no_room_for(
    ray: FakeRay, book: Casebook, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 10**9 if len(told.done) < 2 else 1000))
    with pytest.raises(OSError, match="1e-06 GB are free, and what is being read may take") as full:
        probe.run(book, out=tmp_path / "run", engine=CREW, progress=told)
    assert full.value.errno == errno.ENOSPC
    # Those that were begun before are there.
    assert 2 <= len(committed(tmp_path / "run")) <= 6


def test_a_worker_with_another_model_is_refused_by_what_differs(
    ray: FakeRay, book: Casebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = probe.load("needle")
    model.opened = {"model": "prose"}
    with pytest.raises(UsageError, match=r"another model, or other software, .*: .*weights_sha256 \w+, not \w+"):
        probe.run(book, model=model, out=tmp_path / "run", engine=CREW)


def test_a_worker_that_does_not_see_the_folder_is_refused(
    ray: FakeRay, book: Casebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    come = Worker.come

    def elsewhere(self: Worker, task: Any) -> str:
        import dataclasses

        return come(self, dataclasses.replace(task, folder=str(tmp_path / "elsewhere")))

    monkeypatch.setattr(Worker, "come", elsewhere)
    with pytest.raises(UsageError, match=r"a worker \(process \d+ on .*\) does not see the folder"):
        probe.run(book, out=tmp_path / "run", engine=CREW)
    assert not (tmp_path / "run" / "commits.jsonl").exists()


def test_who_was_given_up_puts_nothing_into_a_run_that_has_ended(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "trace.zarr").mkdir(parents=True)
    sample = next(iter(probe.open(alone).traces())).sample  # type: ignore[union-attr]
    with posted(out) as token:
        writer = HandedOver(out, token).begin_unit("a-0123456789ab", sample=sample)
    with pytest.raises(RunFolderInUse, match="not any more, the folder of the run"):
        writer.commit()
    assert list((out / "trace.zarr").iterdir()) == []


def test_a_unit_that_is_not_what_its_worker_said_is_not_put_on_record(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(alone, out)
    first = json.loads((out / "commits.jsonl").read_text().splitlines()[0])
    (out / "commits.jsonl").unlink()
    del first["checksum"]
    with RunStore(out) as store:
        with pytest.raises(StoreCorrupt, match="manifest"):
            store.adopt({**first, "unit": first["unit"]})
        assert store.committed() == {}


def test_what_was_damaged_in_a_run_by_workers_is_read_again_by_one_process(
    ray: FakeRay, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, path = tmp_path / "run", tmp_path / "small.yaml"
    path.write_text(json.dumps(BOOK))
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(out), "--engine", "ray", "--workers", "2"])
    assert done.exit_code == 0, done.output
    flipped = next(out.glob("trace.zarr/*/sample.json"))
    flipped.write_bytes(flipped.read_bytes()[:-1] + b" ")
    assert CliRunner().invoke(app, ["verify", str(out)]).exit_code == 5
    repaired = CliRunner().invoke(app, ["verify", str(out), "--repair"])
    assert repaired.exit_code == 0, repaired.output
    assert "every byte is what was written" in repaired.output
    assert check_run(out) == []
    assert len(ray.actors) == 2
    report = ("report.html",)
    assert {k: v for k, v in same(out).items() if k not in report} == {
        k: v for k, v in same(alone).items() if k not in report
    }

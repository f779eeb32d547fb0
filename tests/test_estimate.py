"""A run knows what it will take before it spends it: curves, disk, lengths, and what it says afterwards."""

from __future__ import annotations

import json
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probe
from probe import calibration, costs
from probe.calibration import Curve, Trial, cut, spread
from probe.command.cli import app
from probe.cost import Cost, Taken, read_cost, write_cost
from probe.dry_run import dry_run
from probe.errors import NoRoom, StoreCorrupt, UsageError
from probe.limits import Limits
from probe.progress import Silent
from probe.sample import Sample, Span

SMALL: dict[str, Any] = {"lengths": (64, 128), "limit": 2}
Disk = namedtuple("Disk", "total used free")


class Told(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def told() -> Any:
    return dry_run("attention-sinks", **SMALL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> probe.Run:
    return probe.run("attention-sinks", out=tmp_path_factory.mktemp("estimate") / "run", **SMALL)


@pytest.mark.parametrize("terms", [(0.05, 0.0, 0.0), (0.0, 2e-4, 0.0), (0.03, 1e-4, 4e-8), (0.1, 0.0, 1e-7)])
def test_a_curve_goes_on_where_it_was_not_seen(terms: tuple[float, float, float]) -> None:
    a, b, c = terms
    curve = Curve.through([(n, a + b * n + c * n * n) for n in (512, 1024, 2048)])
    for length in (300, 8192, 131_072):
        assert curve(length) == pytest.approx(a + b * length + c * length**2, rel=1e-3)


def test_a_curve_is_no_steeper_than_what_was_seen() -> None:
    assert Curve.through([(64, 2.0)])(128) == 2.0
    assert Curve.through([(100, 1.0), (200, 2.0)]).c == 0
    # Noise that falls with length is a constant, not time that is negative somewhere.
    assert Curve.through([(100, 1.1), (200, 1.0), (400, 0.9)])(10_000) >= 0.9


def test_prompts_are_read_from_the_shortest_up_as_far_as_little_time_goes() -> None:
    samples = [Sample(f"s{n}", (1,) * n) for n in (4096, 64, 128, 70, 1024)]
    read: list[int] = []

    def reads(sample: Sample) -> Trial:
        read.append(len(sample))
        return Trial(len(sample), 1e-6 * len(sample) ** 2, 0, None)

    spread(samples, reads, until=time.perf_counter() + 60)
    # 1,024 take a second; the longest would take seventeen, and is cut for the third point of the curve.
    assert read == [64, 1024, 2048]
    assert 1e-6 * 1024**2 < calibration.LONGEST_SECONDS < 1e-6 * 2048**2


def test_where_nothing_lies_between_the_longest_is_cut() -> None:
    sample = Sample("s", tuple(range(100)), (Span("near", 0, 5), Span("far", 90, 95)), text="x" * 300)
    short = cut(sample, 20)
    assert (short.tokens, [span.name for span in short.spans], len(short.text)) == (tuple(range(20)), ["near"], 60)


def test_a_dry_run_is_near_what_the_run_takes(told: Any, finished: probe.Run) -> None:
    files = [path for path in Path(str(finished.path)).rglob("*") if path.is_file() and path.name != ".lock"]
    disk = sum(path.stat().st_size for path in files)
    assert disk / 1.5 < told.disk_bytes < 1.5 * disk
    assert told.units == len(finished)
    assert told.peak_device_bytes is None
    assert told.calibration_seconds > 0


def test_a_run_says_what_it_took(finished: probe.Run) -> None:
    said = json.loads((Path(str(finished.path)) / "cost.json").read_text())
    assert said["predicted"] is None
    assert said["actual"]["units"] == len(finished)
    assert said["actual"]["disk_bytes"] > 4_000_000
    done = CliRunner().invoke(app, ["show", str(finished.path), "--json"])
    assert json.loads(done.stdout)["cost"] == {key: said[key] for key in ("predicted", "actual")}
    assert "took " in CliRunner().invoke(app, ["show", str(finished.path)]).stdout
    assert finished.verify() == []


def test_both_stand_in_one_line() -> None:
    cost = Cost(Taken(8, 12.2, 900_000_000, None, 30_000_000), Taken(8, 14.0, 880_000_000, None, 29_000_000))
    assert cost.sentence() == (
        "predicted 12 s, 900 MB of memory, 30 MB of disk; took 14 s, 880 MB of memory, 29 MB of disk"
    )


@pytest.mark.parametrize(
    "value", [[], {"format": 1}, {"format": 1, "actual": {"seconds": -1}}, {"format": 1, "actual": {"units": "8"}}]
)
def test_what_no_run_writes_is_named(tmp_path: Path, value: Any) -> None:
    (tmp_path / "cost.json").write_text(json.dumps(value))
    with pytest.raises(StoreCorrupt, match=r"cost\.json"):
        read_cost(tmp_path)


def test_a_disk_that_will_not_suffice_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "WORTH_TOKENS", 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Disk(10**9, 10**9, 1000))
    out = tmp_path / "deep" / "run"
    with pytest.raises(NoRoom, match=r"needs about .* MB of disk, and .* has 1 kB free; nothing was written") as error:
        probe.run("attention-sinks", out=out, **SMALL)
    assert error.value.exit_code == 4
    assert not out.exists()


def test_a_budget_is_held_against_the_prediction_and_the_run_says_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "WORTH_TOKENS", 1)
    told, out = Told(), tmp_path / "run"
    with pytest.raises(probe.errors.StoppedByLimit):
        probe.run("attention-sinks", out=out, limits=Limits(max_bytes=50_000), progress=told, **SMALL)
    assert any("of disk; it will stop at 50 kB" in line for line in told.said)
    first = read_cost(out)
    assert first is not None
    assert first.predicted is not None
    run = probe.run("attention-sinks", out=out, **SMALL)
    second = read_cost(out)
    assert second is not None
    # Predicted once; what was taken before counts.
    assert second.predicted == first.predicted
    assert (second.actual.seconds or 0) > (first.actual.seconds or 0)
    assert second.predicted.units == second.actual.units == len(run)
    assert second.predicted.disk_bytes == pytest.approx(second.actual.disk_bytes, rel=0.5)


def test_what_was_taken_is_read_as_it_was_written(tmp_path: Path) -> None:
    cost = Cost(None, Taken(1, 2.5, 3, 4, 5))
    write_cost(tmp_path, cost)
    assert read_cost(tmp_path) == cost


def test_a_prompt_whose_cache_no_machine_holds_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from probe.workloads.needle import needle

    monkeypatch.setattr(needle, "build", lambda *_: pytest.fail("text is made"))
    # No layer of it has a window.
    model = probe.load("flip-flop")
    with pytest.raises(UsageError, match="are more than 16,777,216"):
        probe.run("first-look", model=model, lengths=(10**9,))
    monkeypatch.setattr("probe.prepare.total_memory", lambda _: 10**9)
    with pytest.raises(UsageError, match=r"the keys and values of 10,000,000 tokens take .* 1 GB of memory in all"):
        probe.run("first-look", model=model, lengths=(10**7,))

"""The command line: what it says, where, and with which exit code."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import probe
from probe import errors
from probe.command.cli import app
from probe.command.terminal_progress import bar_progress, plain_progress, silent_progress, terminal_progress
from probe.finding import Finding, Interval, Measurement
from probe.storage.run_folder import UnreadableRecord

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "\x1b[31m[bold]red[/bold]\x07 \u202egnirts [link=https://x]y[/link]"


class FakeRun:
    path = Path("runs/x")
    units: dict[str, Any]

    def __init__(self, *findings: Finding, failed: list[dict[str, str]] | None = None, model: str = "needle") -> None:
        self._findings = list(findings)
        self.units = {}
        self.record = {
            "casebook": {"name": "first-look", "model": model},
            "provenance": {"model": model},
            "status": "complete",
            "failed": failed or [],
        }

    def findings(self) -> list[Finding]:
        return self._findings


def finding(claim: str = "It answers up to 256 tokens (95 % interval 256 to 512).") -> Finding:
    interval = Interval(low=256, high=512, method="bootstrap over prompts")
    return Finding(
        analysis="effective_length",
        question="How far?",
        claim=claim,
        verdict="supported",
        measured=Measurement(name="effective length", value=256.0, unit="tokens", interval=interval, n=20),
        definition="d",
        source="s",
    )


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Put a fake in place of the run: it records what it is asked, and returns or raises what it is told to."""

    def install(result: Any = None) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def run(casebook: str, *, progress: Any, **options: Any) -> Any:
            asked.update(casebook=casebook, **options)
            progress.start(3)
            progress.message("stage read")
            progress.advance("baseline needle-64-0.50-s0")
            if isinstance(result, BaseException):
                raise result
            return result or FakeRun(finding())

        def dry_run(casebook: str, **options: Any) -> Any:
            asked.update(casebook=casebook, dry=True, **options)
            stage = SimpleNamespace(name="read", units=300, at_most=False, seconds=30.0)
            return SimpleNamespace(units=300, peak_memory_bytes=7e8, disk_bytes=2.5e7, seconds=30.0, stages=[stage])

        module = types.ModuleType("probe.player")
        vars(module).update(run=run)
        monkeypatch.setitem(sys.modules, "probe.player", module)
        module = types.ModuleType("probe.dry_run")
        vars(module).update(dry_run=dry_run)
        monkeypatch.setitem(sys.modules, "probe.dry_run", module)
        return asked

    return install


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_options_arrive_as_values(play: Callable[..., dict[str, Any]]) -> None:
    asked = play()
    done = call(
        "run", "first-look", "--model", "m", "--out", "o", "--lengths", "64, 128", "--depths", "0,.5,1", "--limit", "2",
        "--seed", "7", "--device", "cpu", "--dtype", "float32", "--haystack", "h.txt", "--force", "--trust-remote-code",
        "--private", "--scan", "reference", "--deterministic", "--cache", "offload",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert asked == {
        "casebook": "first-look", "model": "m", "out": Path("o"), "lengths": (64, 128), "depths": (0.0, 0.5, 1.0),
        "limit": 2, "seed": 7, "device": "cpu", "dtype": "float32", "haystack": Path("h.txt"), "force": True,
        "trust_remote_code": True, "private": True, "scan": "reference", "deterministic": True, "cache": "offload",
        "command": "probe run first-look --model m --out o --lengths '64, 128' --depths 0,.5,1 --limit 2 --seed 7 "
        "--device cpu --dtype float32 --haystack h.txt --trust-remote-code --private --scan reference "
        "--deterministic --cache offload",
    }  # fmt: skip


def test_what_is_not_given_is_left_to_the_casebook(play: Callable[..., dict[str, Any]]) -> None:
    asked = play()
    call("run", "first-look")
    assert {key for key, value in asked.items() if value is not None} == {
        "casebook", "force", "trust_remote_code", "private", "command",
    }  # fmt: skip
    assert asked["trust_remote_code"] is asked["private"] is False


def test_the_summary_gives_each_finding_with_its_interval(play: Callable[..., dict[str, Any]]) -> None:
    play()
    done = call("run", "first-look", "--quiet")
    assert "It answers up to 256 tokens (95 % interval 256 to 512)." in done.stdout
    assert "95 % interval 256 to 512 (bootstrap over prompts), n = 20" in done.stdout
    assert done.stderr == ""


def test_progress_goes_to_standard_error(play: Callable[..., dict[str, Any]]) -> None:
    play()
    done = call("run", "first-look")
    assert "1/3  baseline needle-64-0.50-s0" in done.stderr
    assert "stage read" in done.stderr
    assert "baseline" not in done.stdout


def test_json_is_all_that_is_on_standard_output(play: Callable[..., dict[str, Any]]) -> None:
    play()
    brief = json.loads(call("run", "first-look", "--json").stdout)
    assert brief["diagnosis"] == ["It answers up to 256 tokens (95 % interval 256 to 512)."]
    assert brief["findings"][0]["measured"]["interval"]["high"] == 512
    assert brief["failed"] == []


def test_a_dry_run_says_what_it_would_take(play: Callable[..., dict[str, Any]]) -> None:
    asked = play()
    done = call("run", "first-look", "--dry-run", "--limit", "1")
    assert done.stdout == (
        "  read: 300 units, about 30 s\nfirst-look: 300 units, about 30 s, peak memory about 700 MB, disk about 25 MB\n"
    )
    assert asked["dry"]
    assert asked["limit"] == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("no casebook 'x'"), 2),
        (errors.CasebookError("x.yaml:3:5: unknown key"), 2),
        (errors.NotAvailable("no model 'x'"), 3),
        (errors.NotReproducible("Bloom: no attention call"), 3),
        (errors.SomeUnitsFailed("3 failed"), 4),
        (OSError(errno.ENOSPC, "No space left on device", "trace.zarr"), 4),
        (errors.StoreCorrupt("chunk c/0/0"), 5),
        (errors.RunFolderInUse("runs/x holds another run"), 6),
    ],
)
def test_each_error_is_one_message_and_its_code(
    play: Callable[..., dict[str, Any]], error: Exception, code: int
) -> None:
    play(error)
    done = call("run", "x", "--quiet")
    assert done.exit_code == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    expected = "the disk is full: trace.zarr" if isinstance(error, OSError) else str(error)
    assert done.stderr.startswith(f"probe: {expected}")


def test_an_error_of_ours_says_what_to_report(
    play: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    play(ZeroDivisionError("division by zero"))
    done = call("run", "x", "--quiet")
    (report,) = tmp_path.iterdir()
    assert done.exit_code == 70
    assert "an error of probe's own: ZeroDivisionError: division by zero" in done.stderr
    assert str(report) in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in report.read_text(encoding="utf-8")


def test_debug_shows_the_traceback(play: Callable[..., dict[str, Any]]) -> None:
    play(ZeroDivisionError())
    done = call("--debug", "run", "x", "--quiet")
    assert done.exit_code == 70
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lengths", "0"], ["--lengths", "64,,128"], ["--lengths", "1e3"], ["--lengths", "-4"], ["--lengths", "٣"],
        ["--lengths", "64,64"], ["--depths", "0,0.0"],
        ["--depths", "1.1"], ["--depths", "nan"], ["--depths", "a"], ["--limit", "0"], ["--seed", "-1"], ["--nonsense"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_bad_option_is_refused_before_anything_runs(
    play: Callable[..., dict[str, Any]], arguments: list[str]
) -> None:
    asked = play()
    done = call("run", "first-look", *arguments)
    assert done.exit_code == 2
    assert arguments[0] in done.stderr
    assert not asked


def test_failed_units_give_exit_4_after_the_summary(play: Callable[..., dict[str, Any]]) -> None:
    play(FakeRun(finding(), failed=[{"unit": "u1", "condition": "c", "sample": "s", "why": "out of memory"}]))
    done = call("run", "first-look", "--quiet")
    assert done.exit_code == 4
    assert "It answers up to 256 tokens" in done.stdout
    assert "u1: out of memory" in done.stdout
    assert "1 unit failed; the report is partial" in done.stderr
    assert "To try again:\n  probe run first-look" in done.stderr


def test_failures_are_grouped_and_those_that_would_come_again_are_not_to_be_tried(
    play: Callable[..., dict[str, Any]],
) -> None:
    run = FakeRun(finding())
    run.units = {f"u{i}": {"failed": f"NaN at layer {i}"} for i in range(24)}
    play(run)
    done = call("run", "first-look", "--quiet")
    assert done.exit_code == 4
    assert "24 units: NaN at layer 0 (first: u0)" in done.stdout
    assert done.stderr == (
        "probe: 24 units failed; the report is partial. They would fail again with the same model, "
        "and are not read again.\n"
    )
    run.record["failed"] = [{"unit": "v", "why": "out of memory"}]
    mixed = call("run", "first-look", "--quiet").stderr
    assert "25 units failed" in mixed
    assert "24 of them would fail again" in mixed
    assert "To try the others again:\n  probe run first-look" in mixed


def test_a_run_that_has_not_ended_says_so_and_how_to_go_on(play: Callable[..., dict[str, Any]]) -> None:
    run = FakeRun(finding())
    run.units = {"u": {}, "v": {}}
    run.record |= {"status": "stopped", "command": "probe run first-look --out x"}
    play(run)
    shown = call("run", "first-look", "--quiet").stdout
    assert "! this run has not ended (stopped): 2 units are done\n  to go on: probe run first-look --out x\n" in shown
    brief = json.loads(call("run", "first-look", "--quiet", "--json").stdout)
    assert (brief["status"], brief["units"], brief["command"]) == ("stopped", 2, "probe run first-look --out x")


def test_a_stage_that_was_not_played_is_named_with_the_reason(play: Callable[..., dict[str, Any]]) -> None:
    run = FakeRun(finding())
    run.record["stages"] = {"look": {"conditions": []}, "ablate": {"skipped": "no head was found"}}
    play(run)
    assert "stage ablate was not played: no head was found" in call("run", "first-look", "--quiet").stdout
    brief = json.loads(call("run", "first-look", "--quiet", "--json").stdout)
    assert brief["skipped"] == [{"stage": "ablate", "reason": "no head was found"}]


def test_damage_comes_with_the_command_that_starts_over(play: Callable[..., dict[str, Any]]) -> None:
    play(errors.StoreCorrupt("chunk 0 is not what was written"))
    assert "  probe run first-look --out o --force\n" in call("run", "first-look", "--out", "o", "-q").stderr
    play(UnreadableRecord("run.json is not JSON"))
    assert "--force" not in call("run", "first-look", "--out", "o", "-q").stderr


def test_a_dry_run_that_is_stopped_has_nothing_to_go_on(
    play: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    play()

    def stopped(casebook: str, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["probe.dry_run"], "dry_run", stopped)
    done = call("run", "first-look", "--dry-run")
    assert (done.exit_code, done.stderr) == (130, "probe: stopped; nothing was run\n")


def test_ctrl_c_says_what_is_done_and_how_to_go_on(play: Callable[..., dict[str, Any]]) -> None:
    play(KeyboardInterrupt())
    done = call("run", "first-look", "--out", "my run", "--quiet", "--force")
    assert done.exit_code == 130
    assert done.stderr == (
        "probe: stopped; 1 of 3 units are done and stay. To go on:\n  probe run first-look --out 'my run'\n"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_process_without_a_traceback(tmp_path: Path, number: int, code: int) -> None:
    program = f"""
import os, signal, sys, types
module = types.ModuleType("probe.player")
def run(casebook, *, progress, **options):
    progress.start(5)
    progress.advance("a")
    try:
        os.kill(os.getpid(), {int(number)})
        signal.pause()
    finally:
        open("cleaned", "w").close()
module.run = run
sys.modules["probe.player"] = module
sys.argv = ["probe", "run", "first-look"]
from probe.command.cli import main
main()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "1 of 5 units are done and stay" in done.stderr
    assert (tmp_path / "cleaned").exists()


def test_text_from_outside_cannot_command_the_terminal(play: Callable[..., dict[str, Any]]) -> None:
    play(FakeRun(finding(HOSTILE), failed=[{"unit": HOSTILE, "why": HOSTILE}], model=HOSTILE))
    done = call("run", HOSTILE, "--quiet")
    shown = "⟨U+001B⟩[31m[bold]red[/bold]⟨U+0007⟩ ⟨U+202E⟩gnirts [link=https://x]y[/link]"
    assert done.stdout.count(shown) == 4
    assert "\x1b" not in done.stdout + done.stderr
    assert "\u202e" not in done.stdout + done.stderr
    assert "\\u202e" in call("run", HOSTILE, "--quiet", "--json").stdout


def test_an_error_message_cannot_command_the_terminal(play: Callable[..., dict[str, Any]]) -> None:
    play(errors.NotAvailable(HOSTILE))
    done = call("run", "x", "--quiet")
    assert "[bold]red[/bold]⟨U+0007⟩" in done.stderr
    assert "\x1b" not in done.stderr


def test_version() -> None:
    done = call("--version")
    assert (done.exit_code, done.stdout) == (0, f"probe {probe.__version__}\n")


@pytest.mark.parametrize("room", ["models", "casebooks", "analyses", "statistics", "interventions", "workloads"])
def test_each_room_can_be_listed(room: str) -> None:
    (only,) = json.loads(call("list", room, "--json").stdout)
    assert only == room


def test_the_list_holds_what_ships() -> None:
    listing = json.loads(call("list", "--json").stdout)
    for room, name in {
        "models": "needle",
        "casebooks": "first-look",
        "analyses": "retrieval_heads",
        "statistics": "entropy",
        "interventions": "ablate_heads",
        "workloads": "needle",
    }.items():
        assert listing[room].get(name), f"{room}: {name} is missing or says nothing of itself"


def test_a_room_that_is_not_there_is_named() -> None:
    done = call("list", "kitchens")
    assert done.exit_code == 2
    assert "kitchens" in done.stderr
    assert "statistics" in done.stderr


def test_showing_what_is_no_run_says_so(tmp_path: Path) -> None:
    done = call("show", str(tmp_path))
    assert done.exit_code == 3
    assert str(tmp_path) in done.stderr.replace("\n", "")


def test_plain_progress_is_quiet_between_tenths_and_says_the_time_left() -> None:
    seconds = iter([0.0, 0.0, *(float(i) for i in range(1, 101))])
    out = io.StringIO()
    progress = plain_progress(Console(file=out, width=80), clock=lambda: next(seconds))
    progress.start(40)
    progress.start(60)
    for i in range(100):
        progress.advance(f"unit {i}")
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "10/100  unit 9, about 90 s left"
    assert lines[-1] == "100/100  unit 99, about 0 s left"


def test_a_bar_shows_what_runs_and_leaves_nothing_behind() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, legacy_windows=False)
    progress = bar_progress(console)
    progress.start(2)
    progress.advance("[red]first[/red]\x1b[0m")
    progress._bar.refresh()
    assert "[red]first[/red]⟨U+001B⟩[0m" in out.getvalue()
    progress.stop()
    progress.stop()


@pytest.mark.parametrize(
    ("terminal", "quiet", "kind"),
    [(True, False, bar_progress), (False, False, plain_progress), (True, True, silent_progress)],
)
def test_progress_fits_where_it_is_shown(terminal: bool, quiet: bool, kind: type) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    assert type(terminal_progress(console, quiet=quiet)) is kind

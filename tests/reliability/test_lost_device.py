"""A device that is lost ends a run with one line, and no sample is counted as failed for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import probe
from probe import capture
from probe.command.cli import app
from probe.errors import DeviceLost
from probe.hooks.loading.lost_device import lost_device
from probe.storage.checking import check_run
from tests.faults import BOOK
from tests.reliability.figures import Measured
from tests.reliability.same_run import content

SAID = "CUDA error: uncorrectable ECC error encountered"


def command(folder: Path) -> list[str]:
    book = folder / "small.yaml"
    book.write_text(BOOK, encoding="utf-8")
    return ["run", str(book), "--out", str(folder / "run"), "--quiet"]


class Gone(TorchDispatchMode):
    """As after an error that outlives the call it came in: nothing is computed any more."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise torch.AcceleratorError(f"{SAID}\nCUDA kernel errors might be asynchronously reported at some other call")


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Callable[[], None]]]:
    """Lose the device in the n-th unit; gives what brings it back."""
    gone, read, entered = Gone(), capture.read, list[int]()

    def plant(at: int) -> Callable[[], None]:
        units = [0]

        def reads(*given: Any, **options: Any) -> Any:
            units[0] += 1
            if units[0] == at:
                gone.__enter__()
                entered.append(at)
            return read(*given, **options)

        monkeypatch.setattr(capture, "read", reads)
        return back

    def back() -> None:
        while entered:
            entered.pop()
            gone.__exit__(None, None, None)
        monkeypatch.setattr(capture, "read", read)

    yield plant
    back()


def test_a_lost_device_ends_the_run_and_the_same_command_goes_on(lose: Any, tmp_path: Path, measured: Measured) -> None:
    out = tmp_path / "run"
    assert CliRunner().invoke(app, command(tmp_path)).exit_code == 0
    undisturbed = out.rename(tmp_path / "whole")
    ends = []
    # In the first stage, and in the second under an intervention, whose end touches the device as well.
    for at in (3, 3):
        back = lose(at)
        done = CliRunner().invoke(app, command(tmp_path))
        back()
        ends.append(done.exit_code)
        said = done.output.splitlines()
        assert said[0].startswith(f"probe: cpu does not answer any more ({SAID}); stopped; ")
        assert "units are done and stay. To go on:" in said[0]
        assert len(said) == 2
        record = json.loads((out / "run.json").read_text(encoding="utf-8"))
        assert (record["status"], record["failed"]) == ("stopped", [])
    assert ends == [3, 3]
    assert len(probe.open(out)) == 4  # type: ignore[arg-type]
    assert CliRunner().invoke(app, command(tmp_path)).exit_code == 0
    assert check_run(out) == []
    assert content(out) == content(undisturbed)
    measured(
        "lost device",
        "lost in the 3rd unit of 6 and then in the 5th: one line, exit 3, no unit failed; then equal bytes",
    )


def test_a_device_that_is_lost_before_the_first_unit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, gone = probe.load("needle"), Gone()

    def compares(*_: Any, **__: Any) -> Any:
        with gone:
            return model.step(model.prefill([1, 2, 3]), [4])

    # The device is asked after the error has left the block, so that it has to be gone there as well.
    monkeypatch.setattr(capture, "comparison", compares)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: compares())
    with pytest.raises(DeviceLost, match=SAID):
        probe.run("retrieval-heads", model=model, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_that_a_device_survives_fails_its_sample_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, units = capture.read, [0]

    def reads(*given: Any, **options: Any) -> Any:
        units[0] += 1
        if units[0] == 2:
            raise torch.AcceleratorError("CUDA error: invalid configuration argument")
        return read(*given, **options)

    monkeypatch.setattr(capture, "read", reads)
    done = CliRunner().invoke(app, command(tmp_path))
    assert done.exit_code == 4
    failed = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["failed"]
    assert [each["why"] for each in failed] == ["AcceleratorError: CUDA error: invalid configuration argument"]


def test_the_device_of_buffers_and_of_each_part_is_asked() -> None:
    part = torch.nn.Linear(2, 2, device="meta")
    part.register_buffer("here", torch.zeros(1))
    assert lost_device(part) is None
    with Gone():
        assert lost_device(part) == f"cpu does not answer any more ({SAID})"

"""A run on a device without room for the usual chunk: halved, said, the same result; never without end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe import capture
from probe.errors import DeviceTooSmall
from tests.faults import BOOK
from tests.reliability.figures import Measured

SMALL: dict[str, Any] = {"lengths": (128,)}
TOLERANCE = 1e-5


class small_device:
    """Runs out of memory where the model's last layer is given more tokens than there is room for."""

    def __init__(self, model: Any, room: int) -> None:
        self.room, self.refused = room, list[int]()
        self.hook = model.hf.model.layers[-1].register_forward_pre_hook(self.refuse, with_kwargs=True)

    def refuse(self, module: Any, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] > self.room:
            self.refused.append(hidden.shape[1])
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(BOOK, encoding="utf-8")
    return path


def test_the_chunk_is_halved_and_the_run_finds_what_it_would(
    book: Path, tmp_path: Path, caplog: Any, measured: Measured
) -> None:
    model = probe.load("needle")
    whole = probe.run(book, model=model, out=tmp_path / "whole", check=False, **SMALL)
    device = small_device(model, 50)
    with caplog.at_level(logging.WARNING, "probe"):
        halved = probe.run(book, model=model, out=tmp_path / "halved", check=False, **SMALL)
    device.hook.remove()
    assert halved.record["failed"] == []
    tokens = {len(trace.sample) for trace in halved.traces()}
    # Each prompt without its last token: once as it is, and once halved, until it fits.
    assert max(device.refused) in {each - 1 for each in tokens}
    assert min(device.refused) > 50
    said = [record.getMessage() for record in caplog.records if record.name == "probe"]
    assert len(said) == len(device.refused)
    assert all("has no room for a chunk of" in each and "going on in chunks of" in each for each in said)
    worst = 0.0
    for ours, theirs in zip(halved.traces(), whole.traces(), strict=True):
        (chunk,) = {int(word) for word in ours.provenance["prompt"].split() if word.isdigit()}
        assert chunk <= 50
        assert ours.outcome.response_tokens == theirs.outcome.response_tokens
        for name in theirs:
            found, expected = (np.asarray(each[name].values, float) for each in (ours, theirs))
            assert np.array_equal(np.isnan(found), np.isnan(expected))
            off = np.abs(found - expected) / np.maximum(1, np.abs(expected))
            worst = max(worst, float(np.nanmax(off, initial=0)))
    assert worst < TOLERANCE
    claims = [[(each.name, each.verdict, each.measured.value) for each in run.findings()] for run in (halved, whole)]
    assert claims[0] == claims[1]
    measured(
        "device memory",
        f"{len(device.refused)} refusals in a run of {len(halved)} units: halved until it fits, said each time; the "
        f"same answers and findings, statistics within {worst:.0e}",
    )


def test_a_device_without_any_room_fails_each_unit_and_the_run_ends(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read = probe.load("needle"), capture.read
    device, units = small_device(model, 10**9), [0]

    def reads(*given: Any, **options: Any) -> Any:
        units[0] += 1
        device.room = 8 if units[0] > 1 else 10**9
        return read(*given, **options)

    monkeypatch.setattr(capture, "read", reads)
    run = probe.run(book, model=model, out=tmp_path / "run", check=False, **SMALL)
    assert run.record["status"] == "partial"
    assert len(run.record["failed"]) == units[0] - 1 > 0
    for each in run.record["failed"]:
        assert each["why"].startswith("DeviceTooSmall: needle (Qwen3ForCausalLM): cpu has no room for a chunk of ")
        assert each["why"].endswith("chunks are not made smaller than 16 tokens")
    # Of 127 tokens a chunk is halved at 127, 63 and 31, and given up at 15.
    assert len(device.refused) <= 4 * len(run.record["failed"])
    device.room = 8
    with pytest.raises(DeviceTooSmall, match="no room for a chunk"):
        probe.run(book, model=model, out=tmp_path / "other", check=False, **SMALL)
    assert not (tmp_path / "other").exists()
    device.hook.remove()


def test_a_reference_prompt_without_room_is_named() -> None:
    from probe.hooks.attention.head_output_norm import head_output_norm

    model = probe.load("needle")
    device = small_device(model, 20)
    with pytest.raises(
        DeviceTooSmall, match="no room for a reference prompt of 30 tokens, which is read at once: CUDA"
    ):
        head_output_norm(model, [list(range(10, 20)), list(range(10, 40))])
    device.hook.remove()

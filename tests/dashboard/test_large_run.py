"""The synthetic run that the explorer's bars are measured on is what capture would have written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import probe
from tests.dashboard.large_run import write_large_run


def test_a_small_one_opens_and_its_windows_are_probabilities(tmp_path: Path) -> None:
    tokens = 2048
    run = probe.open(write_large_run(tmp_path / "run", tokens=tokens, layers=2, heads=4))
    assert isinstance(run, probe.Run)
    assert run.verify() == []
    assert len(run.findings()) == 1
    trace = run.trace("baseline-needle-0")
    assert trace.heads == {0: 4, 1: 4}
    window = trace.window(1, 3, queries=slice(tokens - 5, tokens), keys=slice(0, tokens))
    assert window.sum(1) == pytest.approx(np.ones(5), abs=1e-5)
    assert trace["entropy"].dims == ("layer", "head", "query_block")
    mean = trace.pyramid(0, 1, 0)["mean"].values
    assert mean.sum(1) == pytest.approx(np.ones(256), abs=1e-4)

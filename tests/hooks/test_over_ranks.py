"""A model that reads a prompt over ranks has the trace of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import probe
from probe.errors import NotReproducible, UsageError
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.kernels.ranked_scan import merges
from probe.kernels.ring import Ring
from probe.kernels.statistic import names, parse
from tests.hooks.conftest import ARCHITECTURES, make
from tests.kernels import rank_processes

FEW = ["log_sum_exp", "entropy", "max_probability", "received_mass", "attention_map", "top_keys", "span_mass", "loss"]
EVERY = [name for name in names() if parse(name).kind in ("scan", "row", "key", "token")]
MERGEABLE = [name for name in EVERY if merges(parse(name)) and name not in ("span_logit", "queries_and_keys")]
SAMPLE = probe.Sample(
    "text",
    tuple(3 + (7 * i * i + 3 * i) % 57 for i in range(151)),
    spans=(probe.Span("needle", 40, 60),),
    answer_tokens=(5, 6),
)


def opened(kind: str) -> HuggingFaceModel:
    """The specimen, or a model of that kind with random weights."""
    return probe.load(kind if kind == "prose" else make(kind))


def read(ring: Ring, folder: Path, kinds: list[str]) -> None:
    """Read the sample over the ranks with each model; rank 0 writes the traces."""
    for kind in kinds:
        trace = probe.trace_over_ranks(
            opened(kind),
            SAMPLE,
            statistics=FEW if kind == "prose" else MERGEABLE,
            max_new_tokens=3,
            out=folder / kind,
            check=False,
        )
        assert (trace is None) == (ring.rank > 0)


def check(folder: Path, kind: str) -> None:
    """Hold a trace of several ranks against one of this process."""
    found = probe.open(folder / kind)
    alone = probe.trace(
        opened(kind), SAMPLE, statistics=FEW if kind == "prose" else MERGEABLE, max_new_tokens=3, check=False
    )
    assert found.outcome.response_tokens == alone.outcome.response_tokens
    assert found.outcome.text_loss == pytest.approx(alone.outcome.text_loss, abs=1e-5)
    assert "ranks" in found.provenance
    np.testing.assert_allclose(found.outcome.answer_log_probability, alone.outcome.answer_log_probability, atol=1e-4)
    assert set(found.dataset) == set(alone.dataset)
    for name in alone.dataset:
        np.testing.assert_allclose(
            found.dataset[name], alone.dataset[name], rtol=1e-4, atol=1e-4, err_msg=f"{kind}: {name}"
        )


def test_the_specimens_trace_is_that_of_one_process(tmp_path):
    rank_processes.run(2, tmp_path, read, ["prose"])
    check(tmp_path, "prose")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_architecture_over_ranks_has_the_trace_of_one_process(tmp_path, size):
    rank_processes.run(size, tmp_path, read, list(ARCHITECTURES))
    for kind in ARCHITECTURES:
        check(tmp_path, kind)


def refuse(ring: Ring, folder: Path) -> None:
    """Ask for what is not read over ranks, and write what each refusal says."""
    said = []
    few = probe.Sample("few", (3,), answer_tokens=(4,))
    with_head_off = probe.ablate_heads([[0, 1]])
    for model, sample, statistics in (
        ("prose", SAMPLE, ["sparse_shape_mass"]),
        ("prose", SAMPLE, ["residual_norm"]),
        ("prose", SAMPLE, ["span_logit"]),
        ("mamba", SAMPLE, ["loss"]),
        ("prose", few, ["entropy"]),
    ):
        try:
            probe.trace_over_ranks(model, sample, statistics=statistics, check=False)
        except (UsageError, NotReproducible) as error:
            said.append(str(error))
    model = probe.load("prose")
    try:
        with with_head_off(model):
            probe.trace_over_ranks(model, SAMPLE, statistics=["entropy"], check=False)
    except UsageError as error:
        said.append(str(error))
    (folder / f"said-{ring.rank}").write_text("\n".join(said), encoding="utf-8")


@pytest.mark.slow
def test_what_is_not_read_over_ranks_is_refused_by_name_on_every_rank(tmp_path):
    rank_processes.run(2, tmp_path, refuse)
    for rank in range(2):
        assert (tmp_path / f"said-{rank}").read_text(encoding="utf-8").splitlines() == [
            "statistics that do not merge over ranks: sparse_shape_mass",
            "statistics that are not read over ranks: residual_norm",
            "statistics that are not read over ranks: span_logit",
            "mamba: not over several ranks, since some of its layers do not attend, and what recurs goes from token to "
            "token",
            "a prompt of 0 tokens before its last, for 2 ranks",
            "prose: interventions over several ranks: not supported",
        ]


@pytest.mark.slow
def test_the_script_of_the_documentation_runs_under_torchrun(tmp_path):
    page = (Path(probe.__file__).parents[1] / "docs" / "many-gpus.md").read_text(encoding="utf-8")
    (tmp_path / "read.py").write_text(page.split("```python\n# read.py\n")[1].split("```")[0], encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "read.py"]
    environment = os.environ | {"PYTHONPATH": str(Path(probe.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 ")
    assert probe.open(tmp_path / "trace").provenance["ranks"] == 2

"""A statistic is asked for of every layer or of some; a casebook says it in either form and points at what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import probe
from probe import plan
from probe.casebook import load
from probe.errors import CasebookError, UsageError
from probe.kernels.attention_map import attention_map
from probe.kernels.entropy import entropy
from probe.requested import Requested, all_requested, requested

BOOK = """\
format: 1
name: small
question: Does it?
workload:
  needle: {lengths: [64], depths: [0.5], samples: 1}
stages:
  - name: read
    conditions:
      baseline: {role: baseline, capture: true}
    capture:
CAPTURE
"""


def book(tmp_path: Path, capture: str) -> Path:
    path = tmp_path / "book.yaml"
    path.write_text(BOOK.replace("CAPTURE", "\n".join(f"      {line}" for line in capture.splitlines())))
    return path


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ("entropy", Requested(entropy())),
        (entropy(), Requested(entropy())),
        ({"entropy": [3, 1]}, Requested(entropy(), (3, 1))),
        ({"attention_map": {"grid": 512, "layers": [2]}}, Requested(attention_map(512), (2,))),
        ({"attention_map": None}, Requested(attention_map())),
    ],
)
def test_a_request_is_a_statistic_and_its_layers(request_: Any, wanted: Requested) -> None:
    assert requested(request_) == wanted
    assert requested(wanted) is wanted


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"entropy": []}, "layers are a list"),
        ({"entropy": {"layers": "3"}}, "layers are a list"),
        ({"entropy": [1, 1]}, "each once"),
        ({"entropy": [True]}, "layers are a list"),
        ({"entropy": [-1]}, "layers are a list"),
        ({"loss": [0]}, "no layers to choose"),
        ({"key_layer_similarity": [1]}, "compares neighbouring layers"),
        ({"entropy": {"surplus": 1, "layers": [0]}}, "no parameter 'surplus'"),
    ],
)
def test_layers_that_are_none_are_refused(request_: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        requested(request_)


def test_a_statistic_asked_for_twice_is_captured_once_and_of_every_layer_asked_for() -> None:
    assert all_requested([{"entropy": [3]}, {"entropy": [1, 3]}]) == [Requested(entropy(), (1, 3))]
    assert all_requested([{"entropy": [3]}, "entropy"]) == [Requested(entropy())]


LISTED = "- queries_and_keys: [0, 2]\n- attention_map: {grid: 2048, layers: [0]}\n- entropy"
MAPPED = "queries_and_keys: [0, 2]\nattention_map: {grid: 2048, layers: [0]}\nentropy:"


@pytest.mark.parametrize("capture", [LISTED, MAPPED], ids=["list", "mapping"])
def test_a_casebook_names_layers_in_either_form(tmp_path: Path, capture: str) -> None:
    (stage,) = load(book(tmp_path, capture)).stages
    wanted = all_requested(plan.requests_of(stage))
    assert [(each.statistic.key, each.layers) for each in wanted] == [
        ("queries_and_keys", (0, 2)),
        ("attention_map_grid_2048", (0,)),
        ("entropy", None),
    ]


@pytest.mark.parametrize(
    ("capture", "place", "said"),
    [
        ("queries_and_keys: [0, 0]", "11:", "each once"),
        ("- entropy\n- queries_and_keys: [x]", "12:", "layers are a list"),
        ("entropi: [1]", "11:", "did you mean 'entropy'"),
        ("attention_map: {gird: 4, layers: [0]}", "11:", "no parameter 'gird'"),
    ],
)
def test_a_bad_layer_is_pointed_at(tmp_path: Path, capture: str, place: str, said: str) -> None:
    with pytest.raises(CasebookError, match=said) as caught:
        load(book(tmp_path, capture))
    assert f"book.yaml:{place}" in str(caught.value)


def test_a_run_keeps_what_its_casebook_names(tmp_path: Path) -> None:
    run = probe.run(book(tmp_path, MAPPED), model="needle", out=tmp_path / "run")
    (trace,) = run.traces()
    assert sorted(trace.kept_layers) == ["0", "2"]
    assert trace.window(2, 0, queries=slice(10, 12), keys=slice(0, 12)).sum(1) == pytest.approx([1, 1], abs=1e-5)
    assert trace.levels(0)[0] == 1
    assert run.verify() == []


def test_a_layer_that_the_model_lacks_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"queries_and_keys: needle has no attention layer 99; it has 0, 1"):
        probe.run(book(tmp_path, "queries_and_keys: [99]"), model="needle", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_of_two_top_keys_the_one_with_more_ranks_serves_for_both() -> None:
    asked = all_requested([{"top_keys": {"k": 1}}, {"top_keys": {"k": 16}}, {"top_keys": {"k": 2, "layers": [1]}}])
    assert [(each.statistic.key, each.layers) for each in asked] == [("top_keys_k_16", None), ("top_keys_k_2", (1,))]

"""The page *Positions*: what was planted at each place comes out, by condition and length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import probe
from probe.dashboard.application.opened import Opened
from probe.dashboard.positions import positions
from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.storage.array import Array
from probe.storage.store import RunStore, write_json
from tests.dashboard.test_every_page import panels

LENGTHS, DEPTHS, SEEDS, LAYERS, HEADS = (64, 256), (0.0, 0.5, 1.0), 6, 2, 3
RIGHT = {("baseline", 64): (6, 2, 5), ("baseline", 256): (3, 0, 6), ("colder", 64): (6, 6, 6)}
"""How many of six prompts are right at each depth."""


def mass_at(depth: float) -> np.ndarray[Any, Any]:
    """Return the attention that each head gives the gold, `[layer head]`."""
    return np.array([[0.01, 0.02, 0.03], [0.05, 0.4, 0.09]]) * (1 + abs(depth - 0.5))


class Placed:
    """Two conditions; of the first everything was captured, of the second nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with RunStore(path) as store:
            for (condition, length), right in RIGHT.items():
                for depth, hits in zip(DEPTHS, right, strict=True):
                    for seed in range(SEEDS):
                        self._unit(store, condition, length, depth, seed, correct=seed < hits)
        write_json(path / "run.json", {"format": 1, "status": "complete"})

    def _unit(self, store: Any, condition: str, length: int, depth: float, seed: int, *, correct: bool) -> None:
        spans = (Span("needle", 4, 8), Span("question", length - 4, length))
        name = f"s{length}-{depth}-{seed}"
        sample = Sample(name, tuple(range(length)), spans, facts={"needle_depth": depth, "length": length})
        facts = {"role": "baseline" if condition == "baseline" else "treatment"}
        unit = f"{condition}-{length}-{int(10 * depth)}-{seed}"
        with store.begin_unit(unit, condition=condition, sample=sample, facts=facts) as writer:
            for layer in range(LAYERS) if condition == "baseline" else ():
                writer.write_layer(layer, self._arrays(layer, length, depth))
            if condition == "baseline":
                writer.write({"loss": Array(("token",), np.r_[np.nan, np.arange(1.0, length)], "nats")})
            writer.commit(Outcome(correct=correct, success_rule="x", answer_log_probability=(-depth - seed,)))

    def _arrays(self, layer: int, length: int, depth: float) -> dict[str, Array]:
        at = np.arange(length)
        share = np.array([0.2, 0.5, 0.8])[:, None] - 0.1 * layer
        mass = np.stack([mass_at(depth)[layer], np.zeros(HEADS)], axis=1)[:, None]
        names = {"span": np.array(["needle", "question"])}
        largest = np.broadcast_to([[0.9 - 0.2 * layer], [0.5], [0.1]], (HEADS, length)) * np.where(at < 10, 0, 1)
        return {
            "span_mass": Array(("head", "row", "span"), mass, "probability", coordinates=names),
            "entropy": Array(("head", "query"), share * np.log(at + 1), "nats"),
            "max_probability": Array(("head", "query"), largest, "probability"),
        }


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Placed:
    return Placed(tmp_path_factory.mktemp("placed") / "run")


def shown(path: Any, search: str = "") -> tuple[dict[str, str], dict[str, Any], str]:
    view, items = positions(Opened([path])).shown(search)
    return view, {panel.name: panel for panel in panels(items)}, str(items)


def lines(panel: Any) -> dict[str, Any]:
    return {trace["name"]: trace for trace in panel.figure.plotly["data"] if trace.get("name")}


def ends(line: Any) -> tuple[Sequence[float], Sequence[float]]:
    y, bars = np.array(line["y"]), line["error_y"]
    return y - np.array(bars["arrayminus"]), y + np.array(bars["array"])


def test_a_u_is_drawn_with_exact_intervals(placed: Placed) -> None:
    view, found, _ = shown(placed.path)
    assert (view["part"], view["condition"], view["length"]) == ("answers", "baseline", "every")
    drawn = lines(found["place_accuracy"])
    assert list(drawn) == ["64 tokens", "256 tokens"]
    for length in LENGTHS:
        hits = np.array(RIGHT["baseline", length])
        line = drawn[f"{length} tokens"]
        assert np.allclose(line["y"], hits / SEEDS, atol=1e-4)
        low, high = ends(line)
        # Clopper and Pearson's ends are quantiles of a beta distribution.
        assert np.allclose(low, np.nan_to_num(stats.beta.ppf(0.025, hits, SEEDS - hits + 1)), atol=1e-3)
        assert np.allclose(high, np.nan_to_num(stats.beta.ppf(0.975, hits + 1, SEEDS - hits), nan=1.0), atol=1e-3)
    losses = lines(found["place_loss"])["64 tokens"]["y"]
    assert np.allclose(losses, [depth + np.mean(range(SEEDS)) for depth in DEPTHS])


def test_other_conditions_stand_beside_it_at_one_length(placed: Placed) -> None:
    _, found, _ = shown(placed.path, "?beside=on&length=64")
    drawn = lines(found["place_accuracy"])
    assert list(drawn) == ["baseline", "colder"]
    assert drawn["colder"]["y"] == [1.0, 1.0, 1.0]
    # No two lines are told apart by colour alone.
    assert len({(line["line"]["dash"], line["marker"]["symbol"]) for line in drawn.values()}) == 2


def test_attention_stands_against_behaviour(placed: Placed) -> None:
    _, found, _ = shown(placed.path, "?part=attention")
    drawn = lines(found["gold_by_place"])
    assert np.allclose(drawn["right answers"]["y"], np.array(RIGHT["baseline", 256]) / SEEDS)
    assert np.allclose(
        drawn["attention to the gold, mean over heads"]["y"], [mass_at(d).mean() for d in DEPTHS], rtol=1e-3
    )
    assert np.allclose(drawn["the head that gives it most"]["y"], [mass_at(d).max() for d in DEPTHS], rtol=1e-3)
    assert "18 prompts read" in found["gold_by_place"].figure.caption


def test_dispersion_is_the_planted_one(placed: Placed) -> None:
    _, found, _ = shown(placed.path, "?part=dispersion")
    shares = np.array([0.2, 0.5, 0.8, 0.1, 0.4, 0.7])
    assert np.allclose(lines(found["entropy_by_position"])["median head"]["y"], np.median(shares), atol=1e-3)
    largest = lines(found["largest_by_length"])
    assert largest["median head"]["x"] == list(LENGTHS)
    assert np.allclose(largest["median head"]["y"], np.median([0.9, 0.5, 0.1, 0.7, 0.5, 0.1]), atol=1e-4)
    # The last eighth before the question, of uniform attention over i + 1 keys.
    uniform = [np.mean([1 / (i + 1) for i in range(n - 4 - (n - 4) // 8, n - 4)]) for n in LENGTHS]
    assert np.allclose(largest["uniform attention"]["y"], uniform, rtol=1e-3)


def test_the_loss_of_a_class_is_the_mean_of_its_tokens(placed: Placed) -> None:
    _, found, _ = shown(placed.path, "?part=loss&length=256")
    [line] = lines(found["loss_by_position"]).values()
    # Token i has the loss i: the class from 16 up to 22 has 18.5.
    at = line["customdata"].index("16")
    assert line["customdata"][at + 1] == "23"
    assert line["y"][at] == pytest.approx(19.0)
    assert line["customdata"][-1] == "181"
    assert line["y"][-1] == pytest.approx((181 + 255) / 2)


def test_the_lines_make_the_figures(placed: Placed) -> None:
    for part in ("answers", "attention", "dispersion", "loss"):
        _, found, _ = shown(placed.path, f"?part={part}")
        assert found
        for panel in found.values():
            *before, last = panel.python.split("\n")
            names: dict[str, Any] = {}
            exec("\n".join([*before, f"made = {last}"]), names)
            assert names["made"] == panel.figure, panel.name


def test_what_is_not_there_is_said(placed: Placed) -> None:
    for part in ("attention", "dispersion", "loss"):
        _, found, said = shown(placed.path, f"?part={part}&condition=colder")
        assert not found
        assert "casebook's capture" in said.replace("\\'", "'").replace('casebook"s', "casebook's")
        assert "arrays were captured under baseline" in said
    assert "None of the analyses that ask about this ran: lost_in_the_middle" in shown(placed.path)[2]
    assert "no condition" in shown(placed.path, "?condition=nothing")[2]
    assert "no prompt of colder has 256 tokens" in shown(placed.path, "?condition=colder&length=256")[2]
    assert "there is no part" in shown(placed.path, "?part=nothing")[2]


def test_it_takes_a_trace_of_its_own(placed: Placed, tmp_path: Path) -> None:
    probe.open(placed.path).trace("baseline-64-0-0").save(tmp_path / "one")
    view, found, _ = shown(tmp_path / "one")
    assert view["part"] == "loss"
    assert "loss_by_position" in found
    assert "entropy_by_position" in shown(tmp_path / "one", "?part=dispersion")[1]
    assert "curves over places want a run" in shown(tmp_path / "one", "?part=answers")[2]

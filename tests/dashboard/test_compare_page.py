"""The page *Compare*: planted differences come out, paired; what cannot be paired or compared is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import probe
from probe.dashboard.application.opened import Opened
from probe.dashboard.compare import compare
from probe.finding import Finding, Measurement
from probe.outcome import Outcome
from probe.sample import Sample
from probe.storage.array import Array
from probe.storage.store import RunStore, write_json
from probe.telling.differing import differing
from tests.dashboard.conftest import wait
from tests.dashboard.test_every_page import opened_page, panels

LENGTH, HEADS, PROMPTS = 32, 3, 8
SHIFT = np.array([[0.0, 0.2, -0.3], [0.1, 0.0, 0.4]])
"""By how much the entropy of each head is higher where something was done, `[layer head]`."""
RIGHT_A = (1, 1, 1, 1, 1, 1, 0, 0)
RIGHT_B = (0, 0, 0, 0, 0, 1, 1, 0)


class Sides:
    """A run of two conditions over the same prompts, one prompt of its own and one that failed on each side."""

    def __init__(self, path: Path, *, layers: int = 2, model: str = "planted", answer: str = "42") -> None:
        self.path, self.layers, self.model, self.answer = path, layers, model, answer
        with RunStore(path) as store:
            for side, right in (("plain", RIGHT_A), ("changed", RIGHT_B)):
                for seed in range(PROMPTS):
                    self._unit(
                        store, side, f"s{seed}", seed, Outcome(correct=bool(right[seed]), **_answered(side, seed))
                    )
                self._unit(store, side, f"only-{side}", 90, Outcome(correct=True, **_answered(side, 0)))
                failed = Outcome(failed="out of memory") if side == "plain" else Outcome(correct=True)
                self._unit(store, side, "broken", 91, failed)
        record = {"format": 1, "status": "complete", "provenance": {"model": model, "seed": 0}}
        write_json(path / "run.json", record)

    def _unit(self, store: Any, side: str, name: str, seed: int, outcome: Outcome) -> None:
        tokens = tuple(int(t) for t in np.random.default_rng(seed).integers(0, 9, LENGTH + LENGTH * (seed % 2)))
        facts = {"needle_depth": 0.5, "length": len(tokens)}
        sample = Sample(name, tokens, facts=facts, answer=self.answer)
        about = (
            {"role": "baseline"} if side == "plain" else {"role": "treatment", "intervention": {"sharpen": {"by": 2}}}
        )
        unit = f"{side}-{name}"
        provenance = {"model": self.model}
        begun = store.begin_unit(unit, condition=side, sample=sample, facts=about, provenance=provenance)
        with begun as writer:
            noise = np.random.default_rng(seed).normal(size=(self.layers, HEADS, 1)) * 0.01
            for layer in range(self.layers):
                base = 1.0 + noise[layer] + (SHIFT[layer % 2][:, None] if side == "changed" else 0)
                entropy = np.broadcast_to(base, (HEADS, len(tokens)))
                writer.write_layer(layer, {"entropy": Array(("head", "query"), entropy, "nats")})
            writer.note(cost={"seconds": 1.0 + seed + (0.5 if side == "changed" else 0.0)})
            writer.commit(outcome)


def _answered(side: str, seed: int) -> dict[str, Any]:
    loss = 1.0 + 0.1 * seed + (0.25 + 0.01 * seed if side == "changed" else 0.0)
    answer = f"{side} says"
    return {"response": answer, "success_rule": "x", "answer_log_probability": (-loss,), "text_loss": 2.0}


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return Sides(tmp_path_factory.mktemp("sides") / "run")


def shown(*paths: Any, search: str = "") -> tuple[dict[str, str], dict[str, Any], str]:
    view, items = compare(Opened(list(paths))).shown(search)
    return view, {panel.name: panel for panel in panels(items)}, str(items)


def test_differences_are_paired_by_prompt(sides: Sides) -> None:
    view, found, said = shown(sides.path)
    assert (view["condition"], view["condition_b"], view["quantity"]) == ("plain", "changed", "accuracy")
    rows = {row[0]: row for row in found["differences"].table}
    right = rows["right answers"]
    a, b = 100 * np.mean(RIGHT_A), 100 * np.mean(RIGHT_B)
    assert right[2:5] == pytest.approx((a, b, b - a))
    # Five are lost and one is gained: McNemar's exact test of one in six.
    assert right[7] == pytest.approx(stats.binomtest(1, 6).pvalue)
    assert right[5] < b - a < right[6]
    loss = rows["loss of the right answer"]
    apart = 0.25 + 0.01 * np.arange(PROMPTS)
    assert loss[4] == pytest.approx(apart.mean())
    assert apart.min() <= loss[5] <= loss[4] <= loss[6] <= apart.max()
    assert rows["loss of the prompt's own text"][4] == 0.0
    assert rows["time of reading a prompt"][4] == pytest.approx(0.5)
    assert rows["time of reading a prompt"][8] == PROMPTS
    assert "8 prompts are paired" in said


def test_what_could_not_be_paired_is_counted_and_named(sides: Sides) -> None:
    said = shown(sides.path)[2]
    assert "1 that only A read: only-plain." in said
    assert "2 that only B read: broken, only-changed." in said
    assert "1 that failed: broken under plain: out of memory." in said


def test_by_length_each_prompt_is_held_against_itself(sides: Sides) -> None:
    _, found, _ = shown(sides.path, search="?quantity=answer_loss")
    [line] = found["difference_by_length"].figure.plotly["data"]
    assert line["x"] == [f"{LENGTH}", f"{2 * LENGTH}"]
    apart = 0.25 + 0.01 * np.arange(PROMPTS)
    assert np.allclose(line["y"], [apart[::2].mean(), apart[1::2].mean()], atol=1e-4)
    [line] = found["difference_by_depth"].figure.plotly["data"]
    assert (line["x"], line["y"]) == (["0.5"], [pytest.approx(apart.mean(), abs=1e-4)])
    # The dashed line, then those that both, A alone, B alone and neither answers.
    _, *groups = found["prompt_by_prompt"].figure.plotly["data"]
    assert [group["name"] for group in groups] == [
        "both right (1)", "only A right (5)", "only B right (1)", "neither right (1)"
    ]  # fmt: skip
    assert len({group["marker"]["symbol"] for group in groups}) == 4


def test_prompts_that_flipped_lead_to_the_attention_of_both(sides: Sides) -> None:
    _, found, _ = shown(sides.path)
    grid = found["flips"]
    rows = [dict(zip(grid.columns, row, strict=True)) for row in grid.table]
    flipped = {f"s{i}" for i in range(PROMPTS) if RIGHT_A[i] != RIGHT_B[i]}
    assert {row["sample"] for row in rows} == flipped
    first = next(row for row in rows if row["sample"] == "s0")
    assert (first["flip"], first["A_answers"], first["right_answer"]) == ("right → wrong", "plain says", "42")
    assert grid.follow["A_answers"].replace("{A}", first["A"]) == "/attention?run=run&unit=plain-s0"
    assert grid.follow["B_answers"].replace("{B}", first["B"]) == "/attention?run=run&unit=changed-s0"


def test_the_atlas_is_the_planted_shift(sides: Sides) -> None:
    view, found, _ = shown(sides.path)
    assert view["score"] == "trace.entropy"
    [cells] = found["atlas_difference"].figure.plotly["data"]
    assert np.allclose(cells["z"], SHIFT, atol=1e-3)
    assert cells["zmin"] == -cells["zmax"] == pytest.approx(-0.4)
    # The sign stands in words too.
    assert cells["text"][0][2].startswith("−0.3")
    assert cells["text"][1][2].startswith("+0.4")
    # The shift is the same in every prompt, so what is not 0 is told.
    framed = {
        (round(s["y0"] + 0.5), round(s["x0"] + 0.5))
        for s in found["atlas_difference"].figure.plotly["layout"]["shapes"]
    }
    assert framed == set(map(tuple, np.argwhere(SHIFT != 0).tolist()))
    assert "Mean over 8 prompts" in found["atlas_difference"].figure.caption


def test_findings_of_two_runs_are_compared_by_head(sides: Sides, tmp_path: Path) -> None:
    other = Sides(tmp_path / "second")
    for path, more in ((sides.path, 0.0), (other.path, 0.25)):
        finding = Finding(
            analysis="retrieval_heads",
            question="?",
            claim="!",
            verdict="supported",
            measured=Measurement(name="x", value=1.0, n=1),
            columns=("layer", "head", "score"),
            table=((0, 1, 0.5), (1, 2, 0.125 + more)),
            definition="d",
            source="s",
        )
        write_json(path / "findings.json", [finding.to_json()])
    try:
        view, found, _ = shown(sides.path, other.path, search="?run=run&run_b=second&score=retrieval_heads.score")
        [cells] = found["atlas_difference"].figure.plotly["data"]
        assert cells["z"] == [[None, 0.0, None], [None, None, 0.25]]
        *before, last = found["atlas_difference"].python.split("\n")
        names: dict[str, Any] = {}
        exec("\n".join([*before, f"made = {last}"]), names)
        assert names["made"] == found["atlas_difference"].figure
        assert view["condition_b"] == view["condition"] == "plain"
    finally:
        (sides.path / "findings.json").unlink()


def test_models_of_another_shape_are_refused_by_name_and_the_rest_is_shown(sides: Sides, tmp_path: Path) -> None:
    deep = Sides(tmp_path / "deep", layers=4, model="deep")
    _, found, said = shown(sides.path, deep.path, search="?run=run&run_b=deep")
    assert "atlas_difference" not in found
    assert "A (planted) has 2 layers of 3 heads, B (deep) has 4 layers of 3 heads" in said
    assert {"differences", "prompt_by_prompt", "differing"} <= set(found)
    assert ("provenance · model", "planted", "deep") in found["differing"].table


def test_where_records_differ_is_said_key_by_key() -> None:
    first = {"a": {"b": 1, "c": "x"}, "stages": [{"name": "read", "half": "both"}, {"k": [1, 2]}], "same": [1]}
    second = {"a": {"b": 2, "c": "x"}, "stages": [{"name": "read", "half": "find"}], "same": [1], "empty": {}}
    assert differing(first, second) == [
        ("a · b", "1", "2"), ("stages · read · half", "both", "find"), ("stages · 1 · k", "[1, 2]", "")
    ]  # fmt: skip


def test_another_right_answer_is_another_question(sides: Sides, tmp_path: Path) -> None:
    other = Sides(tmp_path / "other", answer="43")
    _, found, said = shown(sides.path, other.path, search="?run=run&run_b=other")
    assert "that ask for another answer on each side: " in said
    assert "0 prompts are paired" in said
    assert "differences" not in found


def test_the_lines_make_the_figures(sides: Sides) -> None:
    _, found, _ = shown(sides.path)
    assert {"difference_by_length", "difference_by_depth", "prompt_by_prompt", "atlas_difference"} <= set(found)
    for panel in found.values():
        if panel.python:
            *before, last = panel.python.split("\n")
            names: dict[str, Any] = {}
            exec("\n".join([*before, f"made = {last}"]), names)
            assert names["made"] == getattr(panel, "figure", names["made"]), panel.name
            if panel.name == "flips":
                assert names["made"] == panel.table


def test_two_traces_of_their_own_are_compared(sides: Sides, tmp_path: Path) -> None:
    run = probe.open(sides.path)
    for side in ("plain", "changed"):
        run.trace(f"{side}-s0").save(tmp_path / side)
    _, found, said = shown(tmp_path / "plain", tmp_path / "changed")
    assert "1 prompts are paired" in said
    assert np.allclose(found["atlas_difference"].figure.plotly["data"][0]["z"], SHIFT, atol=1e-3)
    *before, last = found["atlas_difference"].python.split("\n")
    names: dict[str, Any] = {}
    exec("\n".join([*before, f"made = {last}"]), names)
    assert names["made"] == found["atlas_difference"].figure


def test_what_is_not_there_is_said(sides: Sides) -> None:
    assert "no condition 'nothing'" in shown(sides.path, search="?condition_b=nothing")[2]
    assert "no run" in shown(sides.path, search="?run_b=elsewhere")[2]
    assert "there is no quantity" in shown(sides.path, search="?quantity=nothing")[2]
    assert "Both sides have no" in shown(sides.path, search="?score=trace.nothing")[2]


@pytest.mark.browser
def test_in_a_browser_an_answer_leads_to_its_attention(sides: Sides, browser: Any, serve: Any) -> None:
    with serve(sides.path) as address:
        opened_page(browser, f"{address}/compare")
        link = wait(browser, lambda b: b.find_elements("css selector", '#compare-flips [col-id="c6"] a'))[0]
        assert link.text == "changed says"
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", link)
        wait(browser, lambda b: "/attention?" in b.current_url)
        assert "unit=changed-s" in browser.current_url

"""The page *Head*: what was planted of one head, how it ranks, what removing it did; words where nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probe
from probe.analyses.charts.head_profile import MOST_POINTS, entropy_by_position
from probe.analyses.measures.ablated_heads import AnswersByCondition, effect, played
from probe.dashboard.application.opened import Opened
from probe.dashboard.head import head
from probe.sample import Sample
from probe.storage.array import Array
from probe.storage.store import RunStore, write_json
from tests.dashboard.conftest import HOSTILE, wait
from tests.dashboard.head_run import PROMPTS, TOKENS, HeadRun
from tests.dashboard.test_every_page import SETTLED, panels


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> HeadRun:
    return HeadRun(tmp_path_factory.mktemp("heads") / "run")


def shown(path: Any, search: str = "") -> tuple[dict[str, str], dict[str, Any], str]:
    view, items = head(Opened([path])).shown(search)
    return view, {panel.name: panel for panel in panels(items)}, str(items)


def test_its_distances_are_those_that_were_planted(planted: HeadRun) -> None:
    view, found, _ = shown(planted.path, "?layer=3&head=1")
    assert (view["unit"], view["layer"], view["head"]) == ("baseline-0", "3", "1")
    bars, others = found["distance_profile"].figure.plotly["data"]
    assert bars["x"] == ["0", "1", "2–3", "4–7"]
    assert bars["y"] == [0, 0, 0, 1]
    # Three heads with 30, 20, 50 and 0 %, one with all in the last bin.
    assert np.allclose(others["y"], [0.225, 0.15, 0.375, 0.25])
    mine, _ = found["offset_profile"].figure.plotly["data"]
    assert np.allclose(mine["y"], [0, 0.25, 0])


def test_masses_and_entropy_by_position(planted: HeadRun) -> None:
    _, found, _ = shown(planted.path, "?layer=3&head=2")
    sink = found["masses_by_position"].figure
    [line] = sink.plotly["data"]
    assert np.allclose(line["y"], planted.sink[3][2], rtol=1e-3)
    assert "Not captured: recent_mass, max_probability" in sink.caption
    mine, layer, uniform = found["entropy_by_position"].figure.plotly["data"]
    assert mine["x"] == [0, 64]
    assert np.allclose(mine["y"], planted.entropy[3][2], rtol=1e-3)
    assert np.allclose(layer["y"], planted.entropy[3].mean(0), rtol=1e-3)
    assert np.allclose(uniform["y"], np.log([32.5, 96.5]), rtol=1e-3)
    assert "mean of 64 queries" in found["entropy_by_position"].figure.caption


def test_what_is_missing_says_what_to_capture(planted: HeadRun) -> None:
    _, found, said = shown(planted.path, "?layer=3&head=2")
    assert "mean_distance_by_position" not in found
    assert "capture: [mean_distance, rope_share]" in said


def test_top_keys_are_text_and_say_their_spans(planted: HeadRun) -> None:
    _, found, _ = shown(planted.path, "?layer=0&head=0")
    rows = found["top_keys"].rows()[1]
    assert [(row[0], row[2], row[3], row[5], row[6]) for row in rows] == [
        (TOKENS - 1, 1, 10, 0.5, "needle"),
        (TOKENS - 1, 2, 95, pytest.approx(0.3), "<b>q</b>"),
        (TOKENS - 1, 3, 0, pytest.approx(0.2), ""),
    ]
    assert HOSTILE[2] == "<img src=x onerror=window.ran=1>"
    assert rows[0][4] == "<img␣src=x␣onerror=window.ran=1>"
    assert (HOSTILE[6], rows[1][4]) == ("\u202egnp", "⟨U+202E⟩gnp")


def test_it_ranks_among_all_heads(planted: HeadRun) -> None:
    _, found, said = shown(planted.path, "?layer=3&head=1")
    columns, rows = found["ranks"].rows()
    by_name = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    streaming = by_name["head_roles: streaming"]
    assert (streaming["value"], streaming["rank"], streaming["of_heads"]) == (0.5, 3, 8)
    assert streaming["percentile"] == pytest.approx(100 * 5.5 / 8)
    entropy = np.concatenate([0.64 * e[:, 0] + 0.36 * e[:, 1] for e in planted.entropy.values()])
    assert by_name["mean entropy"]["rank"] == int((entropy > entropy[5]).sum()) + 1
    assert "head roles: roles: sink" in said
    assert "key-value head 0 of 2, which heads 0 to 1 share" in said
    assert "suggests it" in said


def test_what_removing_it_did_is_paired_by_prompt(planted: HeadRun) -> None:
    run = probe.open(planted.path)
    each, other = played(run.record)
    answers = AnswersByCondition(Opened([planted.path]).run().answers())
    found = effect(each, answers)
    assert (each.condition, each.heads, found.num_prompts) == ("without-0", ((3, 0),), PROMPTS)
    assert found.loss == pytest.approx(np.mean(planted.cost[0]))
    assert (found.accuracy, found.accuracy_without) == (0.5, 1.0)
    assert found.loss_interval is not None
    assert 0.1 < found.loss_interval.low < found.loss < found.loss_interval.high < 0.6
    assert effect(other, answers).accuracy == 1.0
    _, panel, said = shown(planted.path, "?layer=3&head=0")
    columns, [row] = panel["removed"].rows()
    told = dict(zip(columns, row, strict=True))
    assert (told["condition"], told["right"], told["right_untouched"]) == ("without-0", 0.5, 1.0)
    assert told["answer_loss_more"] == pytest.approx(found.loss)
    # The finding rests on units in which this head was removed, and is no business of another head.
    assert "it <b>breaks</b>" in said
    assert "/overview?run=run&finding=head_ablation" in said
    assert "it <b>breaks</b>" not in shown(planted.path, "?layer=3&head=3")[2]


def test_a_unit_without_arrays_still_has_what_the_run_found(planted: HeadRun) -> None:
    view, found, said = shown(planted.path, "?unit=without-3-2&layer=3&head=1")
    assert view["head"] == "1"
    assert "Nothing of this head was captured in this unit" in said
    assert set(found) == {"ranks"}


def test_a_head_that_is_not_there_is_said(planted: HeadRun, small: Any) -> None:
    assert "no layer 2 with heads here; there are 0, 3" in shown(planted.path, "?layer=2")[2]
    assert "layer 3 has no head 7 here; it has 0 to 3" in shown(planted.path, "?layer=3&head=7")[2]
    assert "Not captured of layer 0" in shown(small.path, "?unit=private")[2]


def test_the_lines_make_the_figures(planted: HeadRun) -> None:
    _, found, _ = shown(planted.path, "?layer=3&head=1")
    figures = [panel for panel in found.values() if hasattr(panel, "figure")]
    assert len(figures) == 4
    for panel in figures:
        *before, last = panel.python.split("\n")
        names: dict[str, Any] = {}
        exec("\n".join([*before, f"made = {last}"]), names)
        assert names["made"] == panel.figure, panel.name


def test_a_long_prompt_is_drawn_as_means(tmp_path: Path) -> None:
    from tests.dashboard.large_run import write_large_run

    run = probe.open(write_large_run(tmp_path / "run", tokens=131_072, layers=1, heads=4, samples=1))
    trace = run.trace(next(iter(run.units)))
    mine, _, _ = entropy_by_position(trace, layer=0, head=2).plotly["data"]
    assert len(mine["x"]) <= MOST_POINTS
    # 2,048 blocks of 64 queries, six to a point.
    stored = trace["entropy"].sel(layer=0).isel(head=2).to_numpy().astype(float)
    assert np.allclose(mine["y"][:-1], stored[:2046].reshape(-1, 6).mean(1), rtol=1e-3)


def test_a_statistic_of_one_layer_alone_is_found(tmp_path: Path) -> None:
    entropy = np.random.default_rng(0).uniform(0, 3, (4, 50))
    with RunStore(tmp_path) as store, store.begin_unit("u", sample=Sample("s", tuple(range(50)))) as writer:
        for layer in range(2):
            writer.write_layer(layer, {"max_logit": Array(("head", "query"), np.ones((4, 50)))})
        writer.of_layer(1).write({"entropy": Array(("head", "query"), entropy, "nats")})
        writer.commit()
    write_json(tmp_path / "run.json", {"format": 1, "status": "complete"})
    _, found, said = shown(tmp_path, "?layer=1&head=2")
    assert np.allclose(found["entropy_by_position"].figure.plotly["data"][0]["y"], entropy[2], rtol=1e-3)
    assert "Not captured of layer 1" in said
    assert "entropy_by_position" not in shown(tmp_path, "?layer=0&head=2")[1]


@pytest.mark.browser
def test_the_keyboard_goes_from_head_to_head(planted: HeadRun, browser: Any, serve: Any) -> None:
    from selenium.webdriver.common.by import By

    with serve(planted.path) as address:
        browser.get(f"{address}/head?layer=0&head=3")
        wait(browser, lambda b: b.execute_script(SETTLED))
        browser.find_element(By.TAG_NAME, "body").send_keys("k")
        wait(browser, lambda b: "Layer 0, head 2" in b.find_element(By.ID, "page").text)
        browser.find_element(By.TAG_NAME, "body").send_keys("J")
        wait(browser, lambda b: "Layer 3, head" in b.find_element(By.ID, "page").text)
        assert not browser.execute_script("return window.ran")

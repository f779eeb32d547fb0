"""The page *Head atlas*: the numbers that were planted, heads chosen in every way, and an experiment that is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import probe
from probe import casebook, strict_yaml
from probe.analyses.measures.scores_of_heads import scores_of_heads, spearman
from probe.dashboard.application.opened import Opened
from probe.dashboard.head_atlas import head_atlas
from probe.dashboard.heads.known import heads_of
from tests.dashboard.conftest import wait
from tests.dashboard.head_run import HEADS, LAYERS, HeadRun
from tests.dashboard.test_every_page import SETTLED, panels


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> HeadRun:
    return HeadRun(tmp_path_factory.mktemp("heads") / "run")


def shown(path: Any, search: str = "") -> tuple[dict[str, str], dict[str, Any], str]:
    view, items = head_atlas(Opened([path])).shown(search)
    return view, {panel.name: panel for panel in panels(items)}, str(items)


def test_a_trace_is_reduced_to_one_number_a_head(planted: HeadRun) -> None:
    found = scores_of_heads(probe.open(planted.path), "baseline-0")
    assert found.heads == tuple((layer, head) for layer in LAYERS for head in range(HEADS))
    # The last block holds 36 of the 100 queries.
    entropy = np.concatenate([0.64 * e[:, 0] + 0.36 * e[:, 1] for e in planted.entropy.values()])
    assert np.allclose(found.score("trace.entropy").values, entropy)
    assert "100 queries" in found.score("trace.entropy").words
    assert "each 64" in found.score("trace.entropy").words
    sink = np.concatenate([s.astype(float).mean(1) for s in planted.sink.values()])
    assert np.allclose(found.score("trace.sink_mass").values, sink)
    received = np.concatenate([r.astype(float) for r in planted.received.values()])
    assert np.allclose(found.score("trace.received_mass.largest").values, received.max(1) / received.sum(1))
    assert np.allclose(found.score("trace.received_mass.first").values, received[:, 0] / received.sum(1))
    # Half of the mass is reached at the end of the bin {1}, and in the middle of 4 to 7.
    assert np.allclose(found.score("trace.distance_histogram.median").values[:4], [1, 5.5, 1, 1])
    assert np.allclose(found.score("trace.offset_mass.1").values[:4], [0.5, 0.25, 0, 1])
    assert np.allclose(found.score("trace.span_mass.needle").values[:4], [0, 0.2, 0.4, 0.6])
    # Two query heads read each key-value head.
    assert np.allclose(found.score("trace.key_norm").values[:4], [1, 1, 2, 2])
    assert found.group((3, 2)) == (1, [2, 3])


def test_pooled_and_per_token_agree_on_a_large_run(tmp_path: Path) -> None:
    from tests.dashboard.large_run import write_large_run

    run = probe.open(write_large_run(tmp_path / "run", tokens=16_384, layers=2, heads=4, samples=1))
    unit = next(iter(run.units))
    found = scores_of_heads(run, unit)
    entropy = run.trace(unit)["entropy"].to_numpy().astype(float)
    assert np.allclose(found.score("trace.entropy").values, entropy.mean(-1).ravel())


def test_columns_of_findings_are_scores(planted: HeadRun) -> None:
    found = scores_of_heads(probe.open(planted.path), "baseline-0")
    keys = [key for key in found.scores if key.startswith("head_roles")]
    # What is text is a label, what is empty or an axis is neither.
    assert keys == ["head_roles.streaming", "head_roles.moves"]
    assert np.allclose(found.score("head_roles.streaming").values, np.arange(8) / 10)
    assert found.score("head_roles.moves").values.tolist() == [1, 0] * 4
    assert found.labels["head_roles.roles"][3, 1] == "sink"
    assert "by_length.score" not in found.scores
    assert found.notes == ("by_length: its table has up to 2 rows a head, none of which is the head's score",)


def test_a_head_removed_alone_has_its_cost_as_a_score(planted: HeadRun) -> None:
    found = scores_of_heads(probe.open(planted.path), "baseline-0")
    cost = found.score("ablated.zero both").values
    assert np.allclose(cost[4], np.mean(planted.cost[0]))
    assert np.allclose(cost[7], np.mean(planted.cost[3]))
    assert np.isnan(cost[[0, 1, 2, 3, 5, 6]]).all()


def test_ranks_and_rank_correlation(planted: HeadRun) -> None:
    random = np.random.default_rng(0)
    x, y = random.integers(0, 5, 40).astype(float), random.normal(size=40)
    x[3] = np.nan
    r, n = spearman(x, y)
    known = np.isfinite(x)
    assert n == 39
    assert r == pytest.approx(stats.spearmanr(x[known], y[known]).statistic)
    assert spearman(np.ones(5), np.arange(5.0)) == (None, 5)
    found = scores_of_heads(probe.open(planted.path), "baseline-0")
    assert found.score("head_roles.streaming").rank(7) == (1, 100 * 7.5 / 8)
    assert found.score("head_roles.moves").rank(1) == (5, 25.0)
    assert found.score("ablated.zero both").rank(0) is None


def test_map_scatter_and_table_show_the_same_heads(planted: HeadRun) -> None:
    view, found, _ = shown(planted.path, "?by=trace.sink_mass&heads=3:1,+0:2")
    cells = found["head_atlas"].figure.plotly["data"][0]
    assert (cells["y"], cells["x"]) == (["0", "3"], ["0", "1", "2", "3"])
    sink = [s.astype(float).mean(1) for s in planted.sink.values()]
    assert np.allclose(cells["z"], sink, rtol=1e-4)
    frames = [(s["y0"] + 0.5, s["x0"] + 0.5) for s in found["head_atlas"].figure.plotly["layout"]["shapes"]]
    assert frames == [(0, 2), (1, 1)]
    assert (view["x"], view["y"]) == ("trace.sink_mass", "trace.distance_histogram.median")
    others, chosen = found["head_scatter"].figure.plotly["data"]
    assert chosen["customdata"] == [[0, 2], [3, 1]]
    assert len(others["x"]) == 6
    assert "over 8 heads" in found["head_scatter"].figure.caption
    columns, rows = found["all_heads"].rows()
    assert columns[:4] == ["layer", "head", "chosen", "head_roles.roles"]
    assert sorted(row[:2] for row in rows if row[2]) == [(0, 2), (3, 1)]
    largest = int(np.argmax(np.concatenate(sink)))
    assert rows[0][:2] == (LAYERS[largest // HEADS], largest % HEADS)
    assert found["all_heads"].follow["head"].endswith("unit=baseline-0&layer={layer}&head={head}")


def test_what_is_no_head_is_said_and_the_rest_is_chosen(planted: HeadRun) -> None:
    _, found, said = shown(planted.path, "?heads=3:1,nonsense,3:9")
    assert len(found["head_atlas"].figure.plotly["layout"]["shapes"]) == 1
    assert "no head 9 in layer 3" in said
    assert "'nonsense' is no head" in said
    assert "there is no score 'x.y'" in shown(planted.path, "?by=x.y")[2]


def test_the_lines_make_the_figures(planted: HeadRun) -> None:
    _, found, _ = shown(planted.path, "?heads=3:1&drag=lasso&x=head_roles.streaming")
    for name in ("head_atlas", "head_scatter"):
        *before, last = found[name].python.split("\n")
        names: dict[str, Any] = {}
        exec("\n".join([*before, f"made = {last}"]), names)
        assert names["made"] == found[name].figure


def copied(items: Any, what: str) -> str:
    """Return the lines that a button copies, by what they are called; "" where there are none."""
    if isinstance(items, list | tuple):
        return "".join(copied(each, what) for each in items)
    if getattr(items, "className", "") == "explorer-lines" and getattr(items, "aria-label", "") == what:
        return str(items.children)
    return copied(getattr(items, "children", None) or (), what)


def test_what_removes_the_chosen_heads_is_a_casebook_that_can_be_played(planted: HeadRun) -> None:
    _, items = head_atlas(Opened([planted.path])).shown("?heads=3:1,0:2&form=uniform")
    command = copied(items, "the command")
    first, rest = command.split("\n", 1)
    written, run = rest.rsplit("CASEBOOK\n", 1)
    assert first == "cat > ablate-0_2-3_1.yaml <<'CASEBOOK'"
    assert run == "probe run ablate-0_2-3_1.yaml --out ablate-0_2-3_1\n"
    book = casebook.check(strict_yaml.parse(written.encode(), "written"))
    assert (book.model, book.seed, book.workload_name) == ("needle", 3, "needle")
    conditions = book.stages[0].conditions
    assert [each.role for each in conditions.values()] == ["baseline", "treatment", "control"]
    name, fields = next(iter(conditions["chosen-heads-removed"].intervention.items()))
    made = casebook.build("hooks", name, fields)
    assert made == probe.ablate_heads([(0, 2), (3, 1)], form="uniform", phase="both")
    assert conditions["others-removed"].intervention.matched_to == "chosen-heads-removed"
    # The conditions alone are the same, for a stage of one's own.
    alone = strict_yaml.parse(copied(items, "the conditions").encode(), "alone").value
    assert alone["conditions"] == strict_yaml.parse(written.encode(), "written").value["stages"][0]["conditions"]
    compile(copied(items, "the Python lines"), "lines", "exec")


def test_no_control_is_written_where_none_can_be_drawn(planted: HeadRun) -> None:
    _, items = head_atlas(Opened([planted.path])).shown("?heads=3:0,3:1,3:2")
    assert "matched_to" not in copied(items, "the command")
    assert "too few heads are left" in str(items)


def test_a_trace_of_its_own_has_lines_but_no_casebook(planted: HeadRun, tmp_path: Path) -> None:
    probe.open(planted.path).trace("baseline-0").save(tmp_path / "one")
    view, found, said = shown(tmp_path / "one", "?heads=3:1")
    assert view["by"].startswith("trace.")
    assert "no workload is on record" in said
    assert "head_atlas" in found


def test_what_is_not_there_is_said(small: Any) -> None:
    _, found, said = shown(small.path)
    assert not found
    assert "retrieval_heads" in said
    assert "entropy" in said


def test_scores_are_read_once_for_both_pages(planted: HeadRun) -> None:
    run = Opened([planted.path]).run()
    assert heads_of(run, "") is heads_of(run, "baseline-0")


@pytest.mark.browser
def test_heads_are_chosen_by_box_by_click_and_by_typing(planted: HeadRun, browser: Any, serve: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    def plot() -> Any:
        wait(browser, lambda b: b.execute_script(SETTLED))
        return wait(browser, lambda b: b.find_element(By.CSS_SELECTOR, "#head_atlas-head_atlas .nsewdrag"))

    def part(name: str) -> str | None:
        found: str | None = browser.execute_script(
            "return new URLSearchParams(location.search).get(arguments[0])", name
        )
        return found

    with serve(planted.path) as address:
        browser.get(f"{address}/head_atlas?click=chooses+it")
        area = plot()
        width, height = area.size["width"], area.size["height"]
        cell = width / HEADS
        # Around the middles of heads 0 and 1 of the upper row, layer 3.
        start = (int(-width / 2 + 0.1 * cell), int(-height / 2 + 4))
        stop = (int(-width / 2 + 1.9 * cell), -4)
        drag = ActionChains(browser).move_to_element_with_offset(area, *start).click_and_hold()
        drag.move_to_element_with_offset(area, *stop).release().perform()
        wait(browser, lambda _: part("heads") == "3:0,3:1")
        wait(browser, lambda b: b.find_element(By.ID, "head_atlas-heads").get_attribute("value") == "3:0,3:1")
        # A click takes one away again; the lower row is layer 0.
        area = plot()
        ActionChains(browser).move_to_element_with_offset(
            area, int(-width / 2 + cell / 2), -height // 4
        ).click().perform()
        wait(browser, lambda _: part("heads") == "3:1")
        field = browser.find_element(By.ID, "head_atlas-heads")
        field.send_keys(", 0:3")
        wait(browser, lambda b: "Ablate these 2 heads" in b.find_element(By.ID, "page").text)
        browser.get(f"{address}/head_atlas")
        area = plot()
        ActionChains(browser).move_to_element_with_offset(
            area, int(-width / 2 + cell / 2), height // 4
        ).click().perform()
        wait(browser, lambda b: "Layer 0, head 0" in b.find_element(By.ID, "page").text)
        assert "/head?layer=0&head=0" in browser.current_url

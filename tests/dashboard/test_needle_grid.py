"""The needle grid says what the units on the disk say, cell by cell, and leads to the samples of each."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from probe.analyses.measures.needle_cells import MOST_PLACES, Places, needle_cells
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.panel import Grid, Panel
from probe.dashboard.needle_grid import needle_grid
from probe.storage.store import RunStore, write_json
from probe.storage.unit_answer import UnitAnswer
from tests.dashboard.conftest import wait
from tests.dashboard.planted_run import DEPTHS, LENGTHS, NUM_SAMPLES, planted, right, unit_id, write_run, write_unit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("planted") / "run", list(planted()))


def items_at(run: Path, search: str = "") -> tuple[dict[str, str], list[Any]]:
    view, items = needle_grid(Opened([run])).shown(search)
    return view, [one for item in items for one in (item if isinstance(item, list) else [item])]


def named(items: list[Any], name: str) -> Any:
    return next(item for item in items if isinstance(item, Panel | Grid) and item.name == name)


def on_the_disk(run: Path) -> dict[tuple[str, int, float], dict[str, list[float]]]:
    """Return right or wrong by condition, length, depth and sample, read file by file."""
    found: Any = defaultdict(lambda: defaultdict(list))
    for folder in sorted((run / "trace.zarr").glob("*/unit.json")):
        unit, sample = (json.loads((folder.parent / name).read_bytes()) for name in ("unit.json", "sample.json"))
        place = (unit["condition"], sample["facts"]["length"], sample["facts"]["needle_depth"])
        found[place][sample["name"]].append(float(unit["outcome"]["correct"]))
    return dict(found)


def test_each_cell_is_what_the_disk_says_with_its_exact_interval(run: Path) -> None:
    _, items = items_at(run)
    heat = named(items, "needle_accuracy").figure.plotly["data"][0]
    assert (heat["x"], heat["y"]) == (["64", "1024"], ["0", "0.25", "1"])
    for row, depth in enumerate(DEPTHS):
        for column, length in enumerate(LENGTHS):
            samples = on_the_disk(run)["baseline", length, depth]
            known = [value for values in samples.values() for value in values]
            assert heat["z"][row][column] == pytest.approx(sum(known) / len(known), rel=1e-2)
            assert heat["text"][row][column] == f"{100 * sum(known) / len(known):.0f} %<br>n {NUM_SAMPLES}"
            exact = stats.binomtest(int(sum(known)), len(known)).proportion_ci(method="exact")
            assert f"{100 * exact.low:.3g} to {100 * exact.high:.3g} %" in heat["customdata"][row][column]


def test_draws_over_one_prompt_are_one_observation(run: Path) -> None:
    answers = Opened([run]).run().answers()
    cells = {(cell.length, cell.depth): cell for cell in needle_cells(answers, "control", against="baseline")}
    for place, cell in cells.items():
        samples = on_the_disk(run)["control", *place]
        means = [sum(values) / len(values) for values in samples.values()]
        assert (cell.num_prompts, cell.num_units) == (NUM_SAMPLES, 2 * NUM_SAMPLES)
        assert cell.value == pytest.approx(sum(means) / len(means))
        untouched = [values[0] for values in on_the_disk(run)["baseline", *place].values()]
        assert cell.difference == pytest.approx(sum(means) / len(means) - sum(untouched) / len(untouched))
        assert cell.interval is not None
        assert "Clopper" not in cell.interval.method


def test_a_difference_is_paired_by_sample(run: Path) -> None:
    view, items = items_at(run, "?condition=treated")
    assert view["against"] == "baseline"
    heat = named(items, "needle_accuracy_difference").figure.plotly["data"][0]
    assert heat["z"][0] == [-1.0, 0.0]
    assert heat["z"][1:] == [[0.0, 0.0], [0.0, 0.0]]
    assert heat["text"][0] == [f"-100<br>n {NUM_SAMPLES}", f"+0<br>n {NUM_SAMPLES}"]


def test_the_loss_is_the_mean_that_was_planted(run: Path) -> None:
    _, items = items_at(run, "?by=loss")
    heat = named(items, "needle_loss").figure.plotly["data"][0]
    for row, depth in enumerate(DEPTHS):
        wrong = sum(not right(1024, depth, i) for i in range(NUM_SAMPLES)) / NUM_SAMPLES
        assert heat["z"][row] == pytest.approx([0.25 + depth, 0.25 + depth + 2 * wrong], rel=2e-3)


def test_the_tables_hold_what_the_figures_show_and_lead_to_every_condition(run: Path) -> None:
    _, items = items_at(run, "?condition=treated&tables=on")
    cells = named(items, "cells")
    assert cells.rows() == named(items, "needle_accuracy").rows()
    rows = [dict(zip(cells.columns, row, strict=True)) for row in cells.table]
    assert [(row["length_tokens"], row["depth"]) for row in rows] == [(at, depth) for at in LENGTHS for depth in DEPTHS]
    assert [row["less_baseline"] for row in rows] == [-1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    totals = named(items, "conditions")
    shares = {row[0]: row[totals.columns.index("share_right")] for row in totals.table}
    for condition, share in shares.items():
        known = [
            v for place, some in on_the_disk(run).items() if place[0] == condition for vs in some.values() for v in vs
        ]
        assert share == pytest.approx(sum(known) / len(known))
    assert totals.follow["condition"] == "/needle_grid?run=run&condition={condition}"


def test_a_click_leads_to_the_samples_of_the_cell(run: Path) -> None:
    _, items = items_at(run, "?condition=treated")
    assert (
        named(items, "needle_accuracy").follow
        == "/needle_grid?run=run&condition=treated&against=baseline&length={x}&depth={y}"
    )
    _, items = items_at(run, "?condition=treated&length=64&depth=0")
    samples = named(items, "samples")
    rows = [dict(zip(samples.columns, row, strict=True)) for row in samples.table]
    wanted = [unit_id(u) for u in planted() if (u["condition"], u["length"], u["depth"]) == ("treated", 64, 0.0)]
    assert [row["unit"] for row in rows] == wanted
    assert {(row["result"], row["under_baseline"]) for row in rows} == {("✗ wrong", "✓ right")}
    assert {row["right_answer"] for row in rows} == {" <b>7</b>"}
    assert samples.follow["attention"] == "/attention?run=run&unit={unit}"
    frame = named(items, "needle_accuracy").figure.plotly["layout"]["shapes"]
    assert {(one["x0"], one["y0"], one["x1"], one["y1"]) for one in frame} == {(-0.5, -0.5, 0.5, 0.5)}


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("?condition=nobody", "has no condition 'nobody'; it has baseline, treated, control"),
        ("?length=65&depth=0", "no cell at length 65 and depth 0; lengths are 64, 1024, depths 0, 0.25, 1"),
        ("?length=64", "no cell at length 64 and depth ?"),
        ("?length=x&depth=0", "it is a whole number"),
    ],
)
def test_an_address_that_names_nothing_is_said(run: Path, search: str, said: str) -> None:
    _, items = items_at(run, search)
    assert said in str(items)


def test_the_lines_make_the_figures(run: Path) -> None:
    for search in ("?condition=treated&by=loss&length=64&depth=0.25", ""):
        _, items = items_at(run, search)
        for panel in (item for item in items if isinstance(item, Panel)):
            before, _, last = panel.python.rpartition("\n")
            scope: dict[str, Any] = {}
            exec(f"{before}\nmade = {last}", scope)
            assert scope["made"] == panel.figure


def test_a_unit_that_failed_or_is_damaged_is_in_no_cell_and_is_named(tmp_path: Path) -> None:
    units = [unit for unit in planted() if unit["condition"] == "baseline" and unit["length"] == 64]
    run = write_run(tmp_path / "run", units[3:])
    with RunStore(run) as store:
        write_unit(store, units[0], failed="out of memory", correct=None)
        write_unit(store, units[1], answer_log_probability=(float("nan"),))
        write_unit(store, units[2])
    damaged = run / "trace.zarr" / unit_id(units[2]) / "unit.json"
    damaged.write_bytes(damaged.read_bytes().replace(b"true", b"True"))
    _, items = items_at(run)
    heat = named(items, "needle_accuracy").figure.plotly["data"][0]
    assert [row[0].partition("n ")[2] for row in heat["text"]] == ["3", "6", "6"]
    said = str(items[0])
    assert "3 units in no number here" in said
    assert "out of memory" in said
    assert "not a number" in said
    assert "not what was written" in said


def test_without_depths_it_is_by_length_and_says_what_would_fill_it(tmp_path: Path) -> None:
    units = [{**unit, "depth": None} for unit in planted() if unit["condition"] == "baseline"]
    with RunStore(tmp_path / "run") as store:
        for unit in units:
            write_unit(store, unit, answer_log_probability=())
    write_json(tmp_path / "run" / "run.json", {"format": 1, "status": "complete"})
    _, items = items_at(tmp_path / "run")
    assert "Workloads that fill this grid: needle, passkey" in str(items[0])
    drawn = named(items, "accuracy_by_length").figure.plotly["data"][0]
    assert drawn["x"] == ["64", "1,024"]
    long = [u["correct"] for u in units if u["length"] == 1024]
    assert drawn["y"] == pytest.approx([1.0, sum(long) / len(long)], rel=1e-3)


def test_too_many_places_are_rounded_and_that_is_said() -> None:
    many = [
        UnitAnswer(
            f"u{i}", "s", "baseline", "baseline", f"p{i}", prompt=str(i), length=60 + i, depth=i / 99, correct=True
        )
        for i in range(100)
    ]
    places = Places.of(many)
    assert places.lengths == (64, 128)
    assert places.depths == tuple(round(i / 10, 1) for i in range(11))
    assert places.rounds_lengths
    assert places.rounds_depths
    assert len({answer.length for answer in many}) > MOST_PLACES
    assert sum(cell.num_prompts for cell in needle_cells(many, "baseline")) == 100


def test_no_units_is_said(tmp_path: Path, small: Any) -> None:
    _, items = items_at(write_run(tmp_path / "run", []))
    assert "probe run first-look" in str(items)
    _, items = items_at(small.path)
    assert "no sample was answered under baseline" in str(items)


def test_each_unit_is_read_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from probe.storage import unit_answer

    read: list[Any] = []
    inner = unit_answer.SealedFiles

    def counted(*arguments: Any, **options: Any) -> Any:
        read.append(arguments)
        return inner(*arguments, **options)

    monkeypatch.setattr(unit_answer, "SealedFiles", counted)
    page = needle_grid(Opened([run]))
    for search in ("", "?condition=treated", "?by=loss"):
        page.shown(search)
    assert len(read) == len(list(planted()))


def test_in_a_browser_a_cell_opens_its_samples(run: Path, browser: Any, serve: Any) -> None:
    from selenium.webdriver import ActionChains

    with serve(run) as address:
        browser.get(f"{address}/needle_grid?condition=treated")
        plot = wait(browser, lambda b: b.find_elements("css selector", "#needle_grid-needle_accuracy .nsewdrag"))[0]
        wait(browser, lambda b: b.find_elements("css selector", "#needle_grid-needle_accuracy .heatmaplayer image"))
        # Left of the middle and below it: the shorter length, the last of three depths.
        size = plot.size
        moved = ActionChains(browser).move_to_element_with_offset(plot, -size["width"] // 4, size["height"] // 3)
        moved.click().perform()
        wait(browser, lambda b: "length=64" in b.current_url and "depth=1" in b.current_url)
        link = wait(browser, lambda b: b.find_elements("css selector", "#needle_grid-samples .ag-cell a[href]"))[0]
        assert "/attention?run=run&unit=treated-0-needle-64-1.0-s0" in link.get_attribute("href")
        browser.back()
        wait(browser, lambda b: "length" not in b.current_url)
        wait(browser, lambda b: not b.find_elements("id", "needle_grid-samples"))

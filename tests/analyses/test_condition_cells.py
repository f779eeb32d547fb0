"""What each condition changes at each length and depth together: planted in cells, read in rows and in the figure."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from probe import figure_table
from probe.analyses.compare_conditions import compare_conditions
from tests.analyses.conftest import make_sample
from tests.analyses.paired_statistics import bca, paired_shares
from tests.analyses.test_compare_conditions import SCALE, nothing, read, row

LENGTHS, DEPTHS = (64, 128), (0.0, 0.5, 1.0)
CELLS = [(length, depth) for length in LENGTHS for depth in DEPTHS]
EACH = 8
SAMPLES = [
    make_sample(i, length=length, depth=depth)
    for i, (length, depth) in enumerate((*cell,) for cell in CELLS for _ in range(EACH))
]
CURED = (128, 0.5)
"""The one cell in which the cure makes six of eight wrong answers right."""
HURT = (64, 1.0)
"""The one cell in which it makes all right answers wrong."""


def planted() -> tuple[list[bool], list[bool], list[float], list[float]]:
    before, after = [], []
    for cell in CELLS:
        before += [cell != CURED] * EACH
        after += [(i < 6) if cell == CURED else cell != HURT for i in range(EACH)]
    generator = np.random.default_rng(3)
    losses = generator.gamma(2.0, 0.5, len(SAMPLES))
    less = np.array([0.5 * (cell == CURED) for cell in CELLS for _ in range(EACH)])
    return before, after, losses.tolist(), (losses - less + 0.02 * generator.standard_normal(len(losses))).tolist()


def finding(by: str = "accuracy"):
    before, after, losses, fewer = planted()
    traces = [
        *nothing(before, losses, samples=SAMPLES),
        *read("cure", after, fewer, samples=SAMPLES, intervention=SCALE),
        *read("water", before, losses, samples=SAMPLES, intervention=SCALE),
    ]
    return compare_conditions(traces, by=by)


def test_every_cell_has_a_row_with_both_quantities_and_their_intervals() -> None:
    found = finding()
    _, _, losses, fewer = planted()
    both = [each for each in found.records() if each["length"] is not None and each["depth"] is not None]
    assert [(each["condition"], each["length"], each["depth"]) for each in both] == [
        (name, *cell) for name in dict.fromkeys(each["condition"] for each in both) for cell in CELLS
    ]
    for i, cell in enumerate(CELLS):
        each = row(found, "cure", length=cell[0], depth=cell[1])
        gained, lost = (6 if cell == CURED else 0), (EACH if cell == HURT else 0)
        kept, neither = (0, 2) if cell == CURED else (EACH - lost, 0)
        low, high = paired_shares(kept, gained, lost, neither)
        assert (each["num_prompts"], each["difference"]) == (EACH, 100 * (gained - lost) / EACH)
        assert (each["difference_low"], each["difference_high"]) == pytest.approx((100 * low, 100 * high), abs=0.02)
        of_cell = slice(i * EACH, (i + 1) * EACH)
        differences = (np.array(fewer) - np.array(losses))[of_cell].tolist()
        assert each["answer_loss_difference"] == pytest.approx(np.mean(differences), rel=1e-3, abs=1e-6)
        low, high = bca(differences)
        assert (each["answer_loss_low"], each["answer_loss_high"]) == pytest.approx(
            (low, high), abs=0.15 * (high - low)
        )
        # Adjusted over whole conditions, a cell has no test of its own.
        assert each["q_value"] is each["loss_q_value"] is None


@pytest.mark.parametrize("by", ["accuracy", "answer_loss"])
def test_the_figure_has_a_map_a_condition_that_shows_where(by: str) -> None:
    found = finding(by)
    drawn = found.figures[-1]
    assert drawn.name == "conditions_by_length_and_depth"
    go.Figure(drawn.plotly)
    columns, rows = figure_table.figure_table(drawn)
    assert columns == ("series", "x", "y", "value")
    values = {(name, x, y): value for name, x, y, value in rows}
    assert len(values) == 2 * len(CELLS)
    for length, depth in CELLS:
        shown = values["cure", f"{length:,}", f"{depth:.2g}"]
        if by == "accuracy":
            assert shown == {CURED: 75, HURT: -100}.get((length, depth), 0)
        else:
            assert shown == pytest.approx(-0.5 if (length, depth) == CURED else 0, abs=0.05)
        assert values["water", f"{length:,}", f"{depth:.2g}"] == 0
    cure = next(trace for trace in drawn.plotly["data"] if trace["name"] == "cure")
    assert cure["customdata"][1][1].startswith("75 % right, 0 % without it; loss ")
    assert cure["customdata"][1][1].endswith(f"n = {EACH}")
    # Better is blue both ways.
    assert cure["colorscale"][-1][1] == "#0b4f8a"
    assert cure["reversescale"] is (by != "accuracy")


def test_with_one_length_or_one_depth_there_are_no_cells() -> None:
    for samples in (
        [make_sample(i, length=64, depth=(0.0, 1.0)[i % 2]) for i in range(12)],
        [make_sample(i, length=(64, 128)[i % 2], depth=0.5) for i in range(12)],
    ):
        made = compare_conditions(
            [*nothing([False] * 12, samples=samples), *read("cure", [True] * 12, samples=samples, intervention=SCALE)]
        )
        assert not [each for each in made.records() if each["length"] is not None and each["depth"] is not None]
        assert "conditions_by_length_and_depth" not in [figure.name for figure in made.figures]


def test_where_there_are_too_many_cells_that_is_said() -> None:
    samples = [make_sample(i, length=(64, 128)[i % 2], depth=(i // 2) / 30) for i in range(60)]
    made = compare_conditions(
        [*nothing([False] * 60, samples=samples), *read("cure", [True] * 60, samples=samples, intervention=SCALE)]
    )
    assert not [each for each in made.records() if each["length"] is not None and each["depth"] is not None]
    assert any("Lengths and depths together have no rows for cure: there are more than 24" in n for n in made.notes)

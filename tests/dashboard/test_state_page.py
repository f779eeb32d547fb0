"""The page *State*: the sizes that were planted, by layer, head and position; words where nothing recurs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probe
from probe.dashboard.application.opened import Opened
from probe.dashboard.state import state
from probe.finding import Finding, Measurement
from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.storage.array import Array
from probe.storage.store import RunStore, write_json
from tests.dashboard.conftest import wait
from tests.dashboard.test_every_page import opened_page, panels

TRAINED, EVERY, READINGS, HEADS = 4_000, 10, 2_000, 3


class Recurrent:
    """A hybrid of layers 1 and 3: head h of layer l has variance 10^(l - 3) (1 + h) growing with the tokens read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens = EVERY * np.arange(1, READINGS + 1)
        provenance: dict[str, Any] = {
            "model": "planted",
            "recurrent_layers": {"mamba2": [1, 3]},
            "positions": {"training_length": {"tokens": TRAINED}},
        }
        self.variance, self.decay = {}, {}
        with RunStore(path) as store:
            for index in range(2):
                # 60 and 600 tokens before the end, the first right and the second wrong.
                age = (60, 600)[index]
                spans = (Span("needle_value", EVERY * READINGS - 1 - age, EVERY * READINGS - age),)
                sample = Sample(f"s{index}", tuple(range(EVERY * READINGS)), spans)
                with store.begin_unit(f"u{index}", sample=sample, provenance=provenance) as writer:
                    for layer in (1, 3):
                        heads = 1.0 + np.arange(HEADS)[:, None]
                        self.variance[layer] = 10.0 ** (layer - 3) * heads * self.tokens
                        self.decay[layer] = np.full((HEADS, 5_000), 0.9) + 0.01 * np.arange(HEADS)[:, None]
                        position = {"position": self.tokens - 1}
                        dims = ("state_head", "position")
                        writer.write_layer(
                            layer,
                            {
                                "state_variance_every_10": Array(dims, self.variance[layer], coordinates=position),
                                "state_mean_every_10": Array(dims, -self.variance[layer], coordinates=position),
                                "decay": Array(("state_head", "token"), self.decay[layer]),
                            },
                        )
                    writer.commit(Outcome(correct=index == 0, response="x", success_rule="exact"))
        write_json(path / "run.json", {"format": 1, "status": "complete"})


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Recurrent:
    return Recurrent(tmp_path_factory.mktemp("recurrent") / "run")


def shown(path: Any, search: str = "") -> tuple[dict[str, str], dict[str, Any], str]:
    view, items = state(Opened([path])).shown(search)
    return view, {panel.name: panel for panel in panels(items)}, str(items)


def test_a_cell_is_the_largest_over_heads_and_readings(recurrent: Recurrent) -> None:
    view, found, _ = shown(recurrent.path)
    assert (view["layer"], view["head"], view["unit"]) == ("1", "0", "u0")
    [cells] = found["state_map"].figure.plotly["data"]
    assert cells["y"] == ["1", "3"]
    # 2,000 readings in 250 columns of 8: the last of each column is its largest, as the variance grows.
    assert cells["x"] == recurrent.tokens[7::8].tolist()
    wanted = np.log10([HEADS * recurrent.tokens[7::8] * scale for scale in (0.01, 1.0)])
    assert np.allclose(cells["z"], wanted, rtol=5e-3)
    assert "largest of 8 readings" in found["state_map"].figure.caption
    assert "4,000 tokens" in found["state_map"].figure.caption


def test_a_click_leads_to_the_layer_and_then_to_the_head(recurrent: Recurrent) -> None:
    _, found, _ = shown(recurrent.path, "?of=mean&layer=3&head=2")
    assert found["state_map"].follow == "/state?of=mean&layer={y}"
    assert found["state_heads"].follow == "/state?of=mean&layer=3&head={y}"
    [cells] = found["state_heads"].figure.plotly["data"]
    # What is large below 0 is large.
    assert np.allclose(
        np.array(cells["z"])[:, -1], np.log10([EVERY * READINGS * (1 + h) for h in range(HEADS)]), rtol=5e-3
    )


def test_a_profile_has_every_quantity_of_one_head(recurrent: Recurrent) -> None:
    _, found, _ = shown(recurrent.path, "?layer=3&head=1")
    variance, mean = found["state_profile"].figure.plotly["data"]
    pairs = 2.0 * recurrent.tokens.reshape(-1, 2).mean(1)
    assert np.allclose(variance["y"], pairs, rtol=1e-3)
    assert np.allclose(mean["y"], -pairs, rtol=1e-3)
    assert (mean["yaxis"], len(mean["x"])) == ("y2", 1_000)
    *_, lost = found["decay_profile"].figure.plotly["data"]
    assert np.allclose(lost["y"], 0.09)
    # -1 / ln 0.91
    assert "10.6 tokens 1/e is left" in found["decay_profile"].figure.caption


def test_recall_by_age_counts_what_was_answered(recurrent: Recurrent) -> None:
    _, found, _ = shown(recurrent.path)
    [line] = found["recall_by_age"].figure.plotly["data"]
    assert line["customdata"] == ["32 to 63 tokens old, 1/1", "512 to 1,023 tokens old, 0/1"]
    assert line["y"] == [1.0, 0.0]
    # Clopper-Pearson of one of one begins at 0.025.
    assert np.allclose(line["error_y"]["arrayminus"], [0.975, 0.0])


def test_onset_stands_against_the_training_length(recurrent: Recurrent, tmp_path: Path) -> None:
    from probe.analyses.charts.state_onset import state_onset

    finding = Finding(
        analysis="state_collapse",
        question="?",
        claim="!",
        verdict="supported",
        measured=Measurement(name="x", value=1.0, n=1),
        columns=("layer", "state_head", "explodes", "onset_tokens"),
        table=((0, 0, True, 6_000.0), (0, 1, False, None)),
        definition="d",
        source="s",
    )
    figure = state_onset(finding, trained=TRAINED)
    explodes, never = figure.plotly["data"]
    assert (explodes["x"], explodes["y"]) == (["(0, 0)"], [6_000.0])
    assert (never["x"], never["customdata"]) == (["(0, 1)"], ["never"])
    assert figure.plotly["layout"]["shapes"][0]["y0"] == TRAINED


def test_the_lines_make_the_figures(recurrent: Recurrent) -> None:
    _, found, _ = shown(recurrent.path)
    assert len(found) == 5
    for panel in found.values():
        *before, last = panel.python.split("\n")
        names: dict[str, Any] = {}
        exec("\n".join([*before, f"made = {last}"]), names)
        assert names["made"] == panel.figure, panel.name


def test_what_is_not_there_is_said(recurrent: Recurrent, small: Any) -> None:
    assert "layer 2 has no recurrent state; layers that have one: 1, 3" in shown(recurrent.path, "?layer=2")[2]
    assert "no state head 7" in shown(recurrent.path, "?layer=1&head=7")[2]
    _, found, said = shown(recurrent.path, "?of=norm")
    assert "state_norm in a casebook" in said
    assert "state_map" not in found
    assert "state_profile" in found
    assert "state_collapse" in said
    _, found, said = shown(small.path)
    assert not found
    assert "no recurrent layer" in said
    assert "state-rescue" in said


def test_it_takes_a_trace_of_its_own(recurrent: Recurrent, tmp_path: Path) -> None:
    probe.open(recurrent.path).trace("u1").save(tmp_path / "one")
    view, found, _ = shown(tmp_path / "one", "?layer=3")
    assert view["unit"] == "u1"
    assert "state_map" in found


@pytest.mark.browser
def test_in_a_browser_a_click_on_the_map_opens_a_profile(recurrent: Recurrent, browser: Any, serve: Any) -> None:
    from selenium.webdriver import ActionChains

    with serve(recurrent.path) as address:
        opened_page(browser, f"{address}/state?layer=3")
        plot = browser.find_element("css selector", "#state-state_heads .nsewdrag")
        # The last row is at the top: head 2 of three.
        above = -int(plot.size["height"] // 3)
        ActionChains(browser).move_to_element_with_offset(plot, 0, above).pause(0.1).click().perform()
        wait(browser, lambda b: "head=2" in b.current_url)
        wait(browser, lambda b: "head 2" in b.find_element("id", "state-state_profile-title").text)
        assert "layer=3" in browser.current_url

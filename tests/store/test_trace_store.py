"""Opening what was captured: what it shows, what it refuses, and what it does not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probe
from probe.errors import MissingStatistic, NotAvailable, StoreCorrupt, UsageError
from probe.finding import Finding, Measurement
from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.storage.run_folder import Run
from probe.storage.store import Array, MemoryStore, RunStore, write_json
from probe.storage.trace_store import as_traces
from probe.storage.trace_store import open as open_store
from probe.storage.unit_trace import Trace

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&<b>\u202e\u2028\x1b[31m{{7*7}}\ud800"


def trace_in_memory(**options: Any) -> Trace:
    store = MemoryStore()
    writer = store.begin_unit("in-memory", **({"sample": Sample("s", (1, 2, 3))} | options))
    for layer in range(2):
        values = np.full((3, 4), layer, np.float32)
        names = np.array([NASTY, "answer"])
        span = Array(("head", "span"), np.ones((3, 2)), NASTY, NASTY, NASTY, coordinates={"span": names})
        writer.write_layer(layer, {"entropy": Array(("head", "query"), values, "nats"), "span_mass": span})
    writer.commit(Outcome(response=NASTY, correct=False, success_rule=NASTY))
    return store.trace("in-memory")


def test_open_tells_a_run_from_a_trace_and_finds_a_unit(written: Any, tmp_path: Path) -> None:
    run = probe.open(written.path)
    assert isinstance(run, Run)
    assert [trace.unit for trace in run.traces()] == list(written.units)
    assert isinstance(open_store(written.path / "trace.zarr"), Run)
    unit = open_store(written.folder())
    assert isinstance(unit, Trace)
    saved = open_store(unit.save(tmp_path / "saved"))
    assert isinstance(saved, Trace)
    assert saved.dataset.identical(unit.dataset)
    assert (saved.sample, saved.outcome, saved.facts) == (unit.sample, unit.outcome, unit.facts)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, 2),
        ({"condition": "control"}, 1),
        ({"role": "baseline", "stage": "read"}, 1),
        ({"role": "baseline", "condition": "control"}, 0),
        ({"stage": "ablate"}, 0),
    ],
)
def test_a_runs_traces_are_chosen_by_condition_stage_and_role(
    written: Any, filters: dict[str, str], found: int
) -> None:
    assert len(list(Run(written.path).traces(**filters))) == found


def test_what_cannot_be_opened_says_why(tmp_path: Path, written: Any) -> None:
    with pytest.raises(NotAvailable, match="nowhere is not there"):
        probe.open(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="neither a run nor a trace"):
        probe.open(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        probe.open(written.path / "run.json")
    (written.folder("baseline-a").parent / "half").mkdir()
    with pytest.raises(StoreCorrupt, match="never committed"):
        probe.open(written.path / "trace.zarr" / "half")
    (written.path / "run.json").unlink()
    with pytest.raises(StoreCorrupt, match=r"run\.json is missing"):
        probe.open(written.path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not the record"),
        ("{}", "no format"),
        ('{"format": true}', "no format"),
        ('{"format": 2}', "newer version"),
        ("\xff\xfe{", "not JSON"),
    ],
)
def test_a_damaged_run_record_is_named(written: Any, text: str, said: str) -> None:
    (written.path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(StoreCorrupt, match=rf"run\.json.*{said}"):
        probe.open(written.path)


@pytest.mark.parametrize("field", ["format", "unit", "stage", "condition", "facts", "provenance", "outcome"])
def test_a_unit_that_does_not_say_what_it_is_is_refused(field: str) -> None:
    trace = trace_in_memory()
    about = json.loads(trace._files.read("unit.json") or b"")
    del about[field]
    trace._files.write("unit.json", json.dumps(about).encode())  # type: ignore[attr-defined]
    with pytest.raises(StoreCorrupt, match=r"unit\.json"):
        Trace(trace._files)


def test_a_missing_statistic_is_named_beside_those_that_are_there() -> None:
    trace = trace_in_memory()
    assert "entropy" in trace
    assert "loss" not in trace
    with pytest.raises(
        MissingStatistic, match=r"no 'loss'; it has entropy, num_heads, span_mass.*statistics=\['loss'\]"
    ):
        trace["loss"]


def test_opening_a_run_reads_no_chunk_and_using_one_layer_reads_that_layer(tmp_path: Path, sample: Sample) -> None:
    with RunStore(tmp_path) as store:
        writer = store.begin_unit("u", sample=sample)
        for layer in range(3):
            writer.write_layer(layer, {"entropy": Array(("head", "query"), np.full((1, 2**18), layer, np.float32))})
        writer.commit()
        trace = store.trace("u")
    asked: list[str] = []
    read = trace._files.read
    trace._files.read = lambda path: asked.append(path) or read(path)  # type: ignore[func-returns-value,method-assign]
    entropy = trace["entropy"]
    assert not [path for path in asked if path.startswith("entropy/c")]
    assert entropy.sel(layer=1).values[0, 0] == 1
    assert [path for path in asked if path.startswith("entropy/c")] == ["entropy/c/1/0/0"]


def test_saving_replaces_a_trace_only_when_told_to_and_anything_else_never(tmp_path: Path, written: Any) -> None:
    trace = trace_in_memory()
    path = trace.save(tmp_path / "deep" / "trace")
    with pytest.raises(UsageError, match="overwrite=True"):
        trace.save(path)
    (path / "trace.zarr" / "extra").write_text("")
    trace.save(path, overwrite=True)
    assert not (path / "trace.zarr" / "extra").exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["trace"]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for other in (tmp_path / "file", tmp_path / "folder", tmp_path / "link", written.path):
        with pytest.raises(UsageError, match="not a saved trace"):
            trace.save(other, overwrite=True)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"
    assert Run(written.path).verify() == []
    (tmp_path / "empty").mkdir()
    assert isinstance(open_store(trace.save(tmp_path / "empty")), Trace)


def test_a_saved_trace_is_verified_like_any_other(tmp_path: Path) -> None:
    path = trace_in_memory().save(tmp_path / "trace")
    opened = open_store(path)
    assert isinstance(opened, Trace)
    assert opened.verify() == []
    chunk = path / "trace.zarr" / "in-memory" / "entropy" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    assert [str(damage) for damage in opened.verify()] == [
        "unit in-memory: array entropy, chunk 0/0/0 is not what was written: its hash differs"
    ]
    value = json.loads((path / "trace.json").read_text())
    (path / "trace.json").write_text(json.dumps(value | {"unit": "../../etc"}))
    with pytest.raises(StoreCorrupt, match=r"not in commits\.jsonl"):
        open_store(path)


class Tags(HTMLParser):
    """Collects the elements of a page, and complains of none that is left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_trace_shows_itself_and_runs_nothing_that_it_holds() -> None:
    sample = Sample(NASTY, tuple(range(5)), (Span(NASTY, 1, 2),), facts={NASTY: NASTY})
    provenance = {"m": NASTY, "positions": {"kind": "rope", "layers": [0, 1], "scaling": None}}
    trace = trace_in_memory(sample=sample, condition=NASTY, stage=NASTY, facts={"role": NASTY}, provenance=provenance)
    page = trace._repr_html_()
    assert "positions (kind rope, layers (0, 1))" in page
    tags = Tags(page)
    assert tags.tags == {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert not tags.open
    assert not {"\u202e", "\u2028", "\x1b", "\ud800"} & set(page)
    for said in ("in-memory", "entropy", "layer 2 × head 3 × query 4", "nats", "wrong", "5 tokens"):
        assert said in page
    assert repr(trace).startswith("Trace('in-memory', condition='")


def test_going_over_a_trace_gives_the_names_of_its_statistics() -> None:
    trace = trace_in_memory()
    shapes = {name: trace[name].shape for name in trace}
    assert shapes == {"entropy": (2, 3, 4), "span_mass": (2, 3, 2), "num_heads": (2,)}


def test_a_run_shows_its_findings_and_runs_nothing_that_it_holds(written: Any) -> None:
    finding = Finding(
        analysis="position_bias", question="?", claim=NASTY[:-1], verdict="supported",
        measured=Measurement(name="n", value=1.0, n=1), definition="d", source="s",
    )  # fmt: skip
    write_json(written.path / "findings.json", [finding.to_json()])
    write_json(written.path / "run.json", {"format": 1, "status": NASTY})
    run = Run(written.path)
    assert run.findings() == [finding]
    page = run._repr_html_()
    assert Tags(page).tags == {"p", "b", "ul", "li", "table", "tr", "th", "td"}
    assert not {"\u202e", "\u2028", "\x1b", "\ud800"} & set(page)
    assert "2 traces" in page
    assert repr(run) == f"Run({str(written.path)!r}, 2 traces)"


def test_findings_that_are_none_are_named(written: Any) -> None:
    assert Run(written.path).findings() == []
    write_json(written.path / "findings.json", [{"analysis": "x"}])
    with pytest.raises(StoreCorrupt, match=r"findings\.json does not hold findings"):
        Run(written.path).findings()


def test_traces_come_from_a_run_a_trace_or_several(written: Any) -> None:
    run = Run(written.path)
    trace = trace_in_memory()
    assert as_traces(trace) == [trace]
    assert [t.unit for t in as_traces(run)] == list(written.units)
    assert as_traces(t for t in [trace]) == [trace]
    with pytest.raises(UsageError, match="got str"):
        as_traces(["x"])  # type: ignore[list-item]


_OPENS = """
import sys, probe
run = probe.open(sys.argv[1])
light = sorted({"numpy", "zarr", "xarray", "pydantic"} & set(sys.modules))
values = [trace["entropy"].values.shape for trace in run.traces()]
heavy = sorted({"torch", "transformers", "triton", "plotly", "dash", "scipy"} & set(sys.modules))
print(light, values, heavy)
"""


def test_opening_and_reading_a_run_loads_no_torch(written: Any) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", _OPENS, str(written.path)], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[] [(3, 6, 64), (3, 6, 64)] []"


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(),
        Outcome("x", (1, 2), True, "exact", (-0.1, -2.0), 1.5, None),
        Outcome(failed="out of memory"),
        Outcome(answer_log_probability=(float("-inf"), float("nan")), text_loss=float("inf")),
    ],
)
def test_an_outcome_round_trips_through_json(outcome: Outcome) -> None:
    again = Outcome.from_json(json.loads(json.dumps(outcome.to_json(), allow_nan=False)))
    assert repr(again) == repr(outcome)


@pytest.mark.parametrize(("given", "expected"), [((), None), ((-1.0, -3.0), 2.0), ((0.0,), 0.0)])
def test_the_answers_loss_is_its_mean_negative_log_probability(
    given: tuple[float, ...], expected: float | None
) -> None:
    assert Outcome(answer_log_probability=given).answer_loss == expected

"""A casebook that is played leaves what it says, once; it goes on where it stopped, and never mixes two runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import probe
from probe import capture, discovery
from probe.dry_run import dry_run
from probe.errors import RunFolderInUse, StoreCorrupt, UsageError
from probe.reader import Reading
from probe.storage.trace_store import Run

SPECIMEN = discovery.get("casebooks", "first-look").parents[1] / "specimens" / "needle"
SMALL: dict[str, Any] = {"lengths": (64, 1024), "depths": (0.0, 0.5), "limit": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return probe.run("first-look", out=tmp_path_factory.mktemp("runs") / "run", **SMALL)


def read_units(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that fills with the name of every sample that is really read."""
    read, inner = [], capture.read

    def counted(model: Any, sample: Any, *rest: Any, **options: Any) -> Any:
        read.append(sample.name)
        return inner(model, sample, *rest, **options)

    monkeypatch.setattr(capture, "read", counted)
    return read


def test_a_run_leaves_its_findings_its_traces_and_its_report(finished: Run) -> None:
    assert {"report.html", "findings.json", "run.json", "trace.zarr", "commits.jsonl"} <= {
        path.name for path in finished.path.iterdir()
    }
    assert finished.record["status"] == "complete"
    for name, facts in finished.record["stages"].items():
        assert facts["num_units"] == sum(unit["stage"] == name for unit in finished.units.values())
    assert [f.analysis for f in finished.findings()] == [
        "effective_length",
        "position_bias",
        "retrieval_heads",
        "attention_sinks",
        "head_ablation",
    ]
    assert not finished.verify()


def test_every_condition_reads_the_same_samples(finished: Run) -> None:
    names = {
        condition: sorted(trace.sample.name for trace in finished.traces(condition=condition))
        for condition in ("baseline", "needle-absent", "gold-only")
    }
    assert len(names["baseline"]) == 8
    assert names["baseline"] == names["needle-absent"] == names["gold-only"]


def test_heads_are_found_on_one_half_and_tested_on_the_other(finished: Run) -> None:
    found = next(f for f in finished.findings() if f.analysis == "retrieval_heads")
    halves = {finished.trace(unit).sample.facts["half"] for unit in found.evidence}
    tested = {trace.sample.facts["half"] for trace in finished.traces(stage="ablate")}
    assert (halves, tested) == ({"find"}, {"test"})


def test_no_control_holds_a_retrieval_head(finished: Run) -> None:
    found = next(f for f in finished.findings() if f.analysis == "retrieval_heads")
    heads = {tuple(head) for head in found.suggests[0].fields["heads"]}
    drawn = {}
    for trace in finished.traces(role="control"):
        fields = trace.facts["intervention"]["ablate_heads"]
        drawn[trace.facts["draw"]] = tuple(tuple(head) for head in fields["heads"])
    assert len(drawn) == len(set(drawn.values())) == 20
    for control in drawn.values():
        assert not heads & set(control)
        assert sorted(layer for layer, _ in control) == sorted(layer for layer, _ in heads)


def test_the_same_run_is_continued_and_nothing_is_read_twice(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    read = read_units(monkeypatch)
    again = probe.run("first-look", out=copy, **SMALL)
    assert not read
    assert again.findings() == finished.findings()


def test_a_stopped_run_goes_on_to_the_same_findings(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_units(monkeypatch)
    counted = capture.read

    def stop_at_the_tenth(*rest: Any, **options: Any) -> Any:
        if len(read) == 10:
            raise KeyboardInterrupt
        return counted(*rest, **options)

    monkeypatch.setattr(capture, "read", stop_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        probe.run("first-look", out=tmp_path / "run", **SMALL)
    stopped = Run(tmp_path / "run")
    assert stopped.record["status"] == "stopped"
    assert len(stopped.units) == 10
    monkeypatch.setattr(capture, "read", counted)
    resumed = probe.run("first-look", out=tmp_path / "run", **SMALL)
    assert resumed.findings() == finished.findings()
    assert len(read) == len(finished.units)


def test_another_run_in_the_folder_is_refused_by_what_differs(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    with pytest.raises(RunFolderInUse, match="differs in casebook"):
        probe.run("first-look", out=copy, **{**SMALL, "seed": 1})
    assert Run(copy).findings() == finished.findings()
    (copy / "mine.txt").write_text("keep")
    read = read_units(monkeypatch)
    replaced = probe.run("first-look", out=copy, force=True, **{**SMALL, "lengths": (64,), "limit": 1})
    assert read
    assert len(replaced.units) < len(finished.units)
    assert (copy / "mine.txt").read_text() == "keep"


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderInUse, match="holds no run"):
        probe.run("first-look", out=tmp_path, force=True, **SMALL)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("thesis.txt", "years of work")]


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "my web app"}', "\x00"])
def test_a_record_that_is_not_ours_is_not_taken_for_a_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises((RunFolderInUse, StoreCorrupt)):
        probe.run("first-look", out=tmp_path, force=True, **SMALL)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("run.json", text)]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """The specimen with one weight of layer 1 that is not a number."""
    model = probe.load("needle")
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    folder = tmp_path / "broken"
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def test_weights_that_are_not_numbers_are_named_by_layer_and_never_in_a_headline(broken: Path, tmp_path: Path) -> None:
    run = probe.run("first-look", model=broken, out=tmp_path / "run", lengths=(64,), depths=(0.5,), limit=1)
    assert run.record["status"] == "partial"
    for failure in run.record["failed"]:
        assert "in layer 1, position 0" in failure["why"]
        assert "model.layers.1.mlp.down_proj.weight holds 1 value" in failure["why"]
    assert all(finding.measured.value is None for finding in run.findings())
    assert "Nothing could be settled" in (run.path / "report.html").read_text()


def test_a_bad_embedding_is_named_by_the_token_that_uses_it() -> None:
    model = probe.load("needle")
    tokens = list(range(10, 40))
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[tokens[21], 3] = float("inf")
    failed = probe.trace(model, tokens, statistics=[]).outcome.failed
    assert failed is not None
    assert "embedding of token 31 at position 21" in failed


def untrained(folder: Path, positions: int) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(SPECIMEN)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=positions, n_embd=32, n_layer=2, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_length_that_the_model_cannot_run_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_units(monkeypatch)
    with pytest.raises(UsageError, match="128 learned positions and cannot run 256"):
        probe.run("first-look", model=untrained(tmp_path / "gpt2", 128), out=tmp_path / "run", lengths=(64, 256))
    assert not read


def test_the_answers_tokens_count_towards_the_limit(tmp_path: Path) -> None:
    # 128 positions, prompts of up to 128 tokens, and three of the four answer tokens are put through after them.
    with pytest.raises(UsageError, match="128 learned positions"):
        probe.run("first-look", model=untrained(tmp_path / "gpt2", 128), out=tmp_path / "run", lengths=(128,), limit=8)
    assert not (tmp_path / "run").exists()


def test_what_is_refused_leaves_no_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        probe.run("first-look", out=tmp_path / "run", lengths=(8,))
    assert not (tmp_path / "run").exists()


def test_a_head_that_the_model_lacks_is_said_before_anything_runs(tmp_path: Path) -> None:
    book = tmp_path / "book.yaml"
    book.write_text(
        "name: b\nquestion: q\nworkload: {needle: {lengths: [64], depths: [0.5], samples: 2}}\n"
        "stages:\n  - name: s\n    conditions:\n      x: {intervention: {ablate_heads: {heads: [[0, 99]]}}}\n"
    )
    with pytest.raises(UsageError, match=r"no head \(0, 99\)"):
        probe.run(book, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stage_without_samples_says_so(tmp_path: Path) -> None:
    run = probe.run("first-look", out=tmp_path / "run", lengths=(64,), depths=(0.5,), limit=1)
    assert "no sample in the test half" in run.record["stages"]["ablate"]["skipped"]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ([1, -1], "token id -1"),
        ([1.5, 2], "token ids"),
        (["a"], "token ids"),
        (None, "token ids"),
        ([], "no tokens"),
        ("", "no tokens"),
        (torch.ones(3), "one row of integers"),
        (torch.ones(1, 3, dtype=torch.long), "one row of integers"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(given: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        probe.trace(probe.load("needle"), given)


@pytest.mark.parametrize(
    "options",
    [{"pool_tokens": 0}, {"pool_tokens": "yes"}, {"max_new_tokens": 0}, {"scan": "fast"}, {"cache": "disk"}],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        probe.trace(probe.load("needle"), [1, 2, 3], statistics="entropy", **options)


def test_the_float64_definitions_give_the_same_trace_on_request_and_it_says_so() -> None:
    model = probe.load("needle")
    asked = ["entropy", "received_mass", "attention_map", "max_probability"]
    usual = probe.trace(model, list(range(3, 103)), statistics=asked)
    exact = probe.trace(model, list(range(3, 103)), statistics=asked, scan="reference")
    assert usual.provenance["engine"].startswith("blocked")
    assert exact.provenance["engine"] == "reference"
    assert exact["entropy"].dtype == "float64"
    for name in asked:
        np.testing.assert_allclose(usual[name], exact[name], atol=1e-5, rtol=1e-5)


def test_a_run_by_other_engines_is_another_run(tmp_path: Path) -> None:
    options = {"model": "needle", "lengths": (64,), "depths": (0.5,), "limit": 1, "out": tmp_path / "run"}
    probe.run("first-look", **options)
    with pytest.raises(RunFolderInUse, match="differs in scan;"):
        probe.run("first-look", **options, scan="reference")


def test_what_computes_and_who_reads_are_two_options(tmp_path: Path) -> None:
    for asked in (probe.run, dry_run):
        with pytest.raises(UsageError, match="write scan='triton', or --scan triton"):
            asked("first-look", engine="triton", out=tmp_path / "run")
        with pytest.raises(UsageError, match="no engine 'fast'; there are local"):
            asked("first-look", engine="fast", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_the_identity_that_it_had_when_the_scan_was_called_engine() -> None:
    assert Reading("reference", deterministic=True).identity() == {"engine": "reference", "deterministic": "True"}


def test_an_untrained_model_gives_no_finding_and_no_crash(tmp_path: Path) -> None:
    run = probe.run("first-look", model=untrained(tmp_path / "gpt2", 128), out=tmp_path / "run", lengths=(64,), limit=2)
    verdicts = {finding.analysis: finding.verdict for finding in run.findings()}
    assert verdicts["retrieval_heads"] == "inconclusive"
    assert verdicts["head_ablation"] == "inconclusive"
    assert "skipped" in run.record["stages"]["ablate"]
    assert run.record["status"] == "complete"


def test_a_model_object_is_played_as_it_is(tmp_path: Path) -> None:
    model = probe.load("needle")
    run = probe.run("first-look", model=model, out=tmp_path / "run", lengths=(64,), depths=(0.5,), limit=1)
    assert run.record["provenance"]["weights_sha256"] == model.weights_sha256


def test_a_dry_run_refuses_what_the_run_would(tmp_path: Path) -> None:
    book = tmp_path / "book.yaml"
    book.write_text(
        "name: b\nquestion: q\nworkload: {needle: {lengths: [64], depths: [0.5], samples: 2}}\n"
        "stages:\n  - name: s\n    conditions:\n      x: {intervention: {ablate_heads: {heads: [[0, 99]]}}}\n"
    )
    with pytest.raises(UsageError, match=r"no head \(0, 99\)"):
        dry_run(book)


def test_a_dry_run_reads_nothing_into_the_folder(tmp_path: Path) -> None:
    told = dry_run("first-look", out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()
    # Three conditions of 2 × 2 × 2 samples, then one treatment and twenty draws of the half of them.
    assert [stage.units for stage in told.stages] == [24, 84]
    assert told.units == 108
    assert told.seconds > 0
    assert told.peak_memory_bytes > 50e6


def test_findings_are_valid_json_without_any_number_that_json_lacks(finished: Run) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads((finished.path / "findings.json").read_text(), parse_constant=refuse)
    json.loads((finished.path / "run.json").read_text(), parse_constant=refuse)

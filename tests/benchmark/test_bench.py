"""`probe bench` from the command line to the file: tiny lengths, every case, what does not fit, what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from probe.benchmark import ladder, measuring, memory
from probe.benchmark.cases import CASES
from probe.benchmark.rendering import BEGIN, END
from probe.benchmark.result import Bench, Job, Measurement
from probe.benchmark.stored import read_bench
from probe.command.cli import app
from probe.errors import NotAvailable, StoreCorrupt, UsageError
from probe.progress import Silent


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process: a process of its own for each would take seconds."""
    monkeypatch.setattr(ladder, "measure_apart", measuring.measure)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_case_at_every_length(make: Any, here: None) -> None:
    plan = make.plan(model=make.tiny, model_lengths=(40,), layer_lengths=(1, 33))
    seen: list[int] = []
    bench = ladder.climb(plan, command="c", progress=Silent(), so_far=lambda b: seen.append(len(b.measurements)))
    assert bench.complete
    assert seen == [*range(12), 11]
    assert {m.job.case for m in bench.measurements} == {case.name for case in CASES}
    for m in bench.measurements:
        assert m.skipped is None
        assert 1 <= len(m.seconds) <= plan.repeats
        assert all(second > 0 for part in m.parts.values() for second in part)
        assert m.clock == "perf_counter"
        assert m.peak_bytes >= m.before_bytes * 0.5 > 0
    assert set(next(m for m in bench.measurements if m.job.case == "scan_after_flash").parts) == {"forward", "scan"}
    assert Bench.model_validate_json(bench.model_dump_json()) == bench


def test_a_measurement_in_a_process_of_its_own(make: Any) -> None:
    job = Job(case="scan_alone", length=16, engine="blocked", statistics="core")
    found = measuring.measure_apart(make.plan(), job)
    assert found.skipped is None
    assert found.ran is not None
    assert found.ran.startswith("blocked")
    assert len(found.seconds) == 2
    assert found.memory == "resident memory of a process of its own"


def test_what_the_other_process_refuses_is_refused_here(make: Any) -> None:
    plan = make.plan(model={"name": "no-such-model-anywhere", "loaded": True}, model_lengths=(16,))
    with pytest.raises(NotAvailable, match="no-such-model-anywhere"):
        measuring.measure_apart(plan, Job(case="prefill", length=16))


def test_what_does_not_fit_is_never_tried(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "available_bytes", lambda device: 10**9)
    job = Job(case="eager", length=10**6, statistics="core")
    found = measuring.measure(make.plan(), job)
    assert found.skipped == "it does not fit into memory"
    # Two heads, logits, probabilities and one matrix between, in float32.
    assert found.needed_bytes == 2 * 10**12 * 12
    assert found.available_bytes == 10**9
    assert found.seconds == ()


def test_running_out_of_memory_is_an_answer(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measuring, "timed", lambda *_, **__: full())
    found = measuring.measure(make.plan(), Job(case="sdpa", length=16))
    assert "ran out of memory" in str(found.skipped)


def test_a_process_that_the_system_ends_is_an_answer(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_command", lambda: ["sh", "-c", "kill -9 $$"])
    found = measuring.measure_apart(make.plan(), Job(case="sdpa", length=16))
    assert "the system ended it" in str(found.skipped)


def test_a_process_that_fails_otherwise_says_how(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_command", lambda: ["sh", "-c", "echo broken >&2; exit 7"])
    with pytest.raises(RuntimeError, match="ended with 7:\nbroken"):
        measuring.measure_apart(make.plan(), Job(case="sdpa", length=16))


def test_the_peak_is_of_what_comes_after_begin() -> None:
    meter = memory.ProcessMemory()
    before = meter.begin()
    held = torch.ones(64 << 20, dtype=torch.uint8)
    assert meter.peak() - before >= len(held) * 0.9
    del held


def test_free_memory_is_known() -> None:
    free = memory.available_bytes("cpu")
    assert free is None or 0 < free <= (memory.total_bytes() or free)


def test_the_command_writes_a_file_that_it_shows_again(tmp_path: Path, here: None) -> None:
    path = tmp_path / "bench.json"
    done = call(
        "--only", "scan", "--lengths", "16,8", "--heads", "2", "--kv-heads", "1", "--head-dim", "4", "--repeats", "1",
        "--threads", "1", "--statistics", "five,entropy", "--engines", "blocked", "--device", "cpu", "--dtype",
        "bfloat16", "--json", str(path), "--markdown", "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    bench = read_bench(path)
    assert bench.complete
    assert bench.plan.layer_lengths == (8, 16)
    assert set(bench.plan.statistics) == {"five", "entropy"}
    assert str(tmp_path) not in path.read_text()
    assert bench.command == (
        "probe bench --lengths 16,8 --heads 2 --kv-heads 1 --head-dim 4 --dtype bfloat16 --device cpu --threads 1 "
        "--engines blocked --only scan --statistics five,entropy --repeats 1"
    )
    again = call("--from", str(path), "--markdown")
    assert again.stdout == done.stdout
    document = tmp_path / "x.md"
    document.write_text(f"# Title\n{BEGIN}\n{END}\n")
    assert call("--from", str(path), "--into", str(document)).exit_code == 0
    assert again.stdout in document.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lengths", "0"], "--lengths: expected whole numbers above 0"),
        (["--lengths", "64,64"], "64 is given twice"),
        (["--statistics", "entropie"], "there is no 'entropie'"),
        (["--engines", "quick"], "--engines: there is no 'quick'"),
        (["--engines", "triton", "--device", "cpu"], "triton cannot be measured on cpu"),
        (["--only", "half"], "--only: expected scan or model"),
        (["--dtype", "int8"], "--dtype: expected float32"),
        (["--device", "abacus"], "--device: there is no 'abacus' here"),
        (["--device", "cpu:1"], "--device: there is no 'cpu:1' here"),
        (["--heads", "3", "--kv-heads", "2"], "do not fall into 2 groups"),
        (["--model", "x", "--model-shape", "8b"], "exclude each other"),
        (["--model-shape", "9b"], "there is no '9b'"),
        (["--json", "/no/such/folder/x.json"], "--json: there is no folder"),
        (["--from", "x.json", "--lengths", "4"], "--from shows what was measured before"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "measure_apart", lambda *_: pytest.fail("something was measured"))
    done = call(*options, "--quiet")
    assert done.exit_code == 2, done.output
    assert said in done.stderr


def test_another_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"dear": "diary"}')
    done = call("--json", str(path), "--quiet")
    assert done.exit_code == 2
    assert path.read_text() == '{"dear": "diary"}'


@pytest.mark.parametrize(
    ("text", "error"),
    [("{", StoreCorrupt), ("[]", StoreCorrupt), ('{"measurements": [], "format": 99}', UsageError)],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, error: type[Exception]) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(error):
        read_bench(path)


def test_a_field_too_many_is_refused_by_name(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(make.bench().model_dump(mode="json") | {"surplus": 1}))
    with pytest.raises(StoreCorrupt, match="surplus"):
        read_bench(path)


def test_ctrl_c_leaves_with_130_and_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Job] = []

    def measured(plan: object, job: Job) -> Measurement:
        if done:
            raise KeyboardInterrupt
        done.append(job)
        return Measurement(job=job, skipped="not today")

    monkeypatch.setattr(ladder, "measure_apart", measured)
    path = tmp_path / "x.json"
    stopped = call("--device", "cpu", "--json", str(path), "--quiet")
    assert stopped.exit_code == 130
    assert "what was measured is in" in stopped.stderr
    kept = read_bench(path)
    assert not kept.complete
    assert len(kept.measurements) == 1


def test_a_folder_is_named_by_its_last_part_alone(make: Any, here: None, tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    plan = make.plan(layer=None, model={"name": str(folder), "loaded": True}, model_lengths=())
    bench = ladder.climb(plan, command="c", progress=Silent())
    assert bench.plan.model is not None
    assert bench.plan.model.name == "my-model"

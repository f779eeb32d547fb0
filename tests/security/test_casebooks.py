"""A casebook is untrusted: whatever stands in it is read or refused, with its place, in little time and memory."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.reliability.figures import Measured
from tests.security.casebook_fuzz import HOSTILE_YAML, KINDS, casebook
from tests.security.casebook_judge import MOST_BYTES, MOST_SECONDS, Judged, begun, judged, warm

FAST, NIGHTLY, AT_ONCE = 150, 100_000, 2

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="what a casebook takes is limited in a forked process")


def all_judged(seeds: range, folder: Path) -> Judged:
    """Judge casebooks a few thousand at a time: what libraries keep of one is no matter of the thousandth after it."""
    warm()
    whole = Judged()
    firsts = range(seeds.start, seeds.stop, 2_000)
    for at in range(0, len(firsts), AT_ONCE):
        running = []
        for first in firsts[at : at + AT_ONCE]:
            room = folder / str(first)
            room.mkdir()
            running.append(begun(range(first, min(first + 2_000, seeds.stop)), room))
        for part in [each() for each in running]:
            whole.ends += part.ends
            whole.wrong += part.wrong
            whole.peak_bytes = max(whole.peak_bytes, part.peak_bytes)
            whole.slowest_seconds = max(whole.slowest_seconds, part.slowest_seconds)
    return whole


def held(found: Judged, number: int, measured: Measured) -> None:
    assert not found.wrong, "\n".join(found.wrong[:20])
    assert sum(found.ends.values()) == number
    # Otherwise the corpus is of no use: some are refused, some are built.
    assert min(found.ends["refused"], found.ends["built"]) > number / 50
    assert found.peak_bytes <= MOST_BYTES
    ends = ", ".join(f"{count:,} {end}" for end, count in found.ends.most_common())
    measured(
        "fuzzed casebooks",
        f"{number:,} casebooks ({ends}): none crashed or hung; memory of a process that reads {min(number, 2_000):,} "
        f"+{found.peak_bytes / 1e6:.0f} MB, the slowest {found.slowest_seconds:.2f} s of processor time",
    )


def test_fuzzed_casebooks_are_read_or_refused_with_their_place(tmp_path: Path, measured: Measured) -> None:
    held(all_judged(range(FAST), tmp_path), FAST, measured)


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_100_000_fuzzed_casebooks_are_read_or_refused_with_their_place(tmp_path: Path, measured: Measured) -> None:
    held(all_judged(range(NIGHTLY), tmp_path), NIGHTLY, measured)


def test_the_corpus_has_every_kind_of_mutation_and_repeats_itself() -> None:
    drawn = [casebook(seed) for seed in range(150)]
    assert Counter(kind for kind, _ in drawn).keys() == KINDS.keys()
    assert len({text for _, text in drawn}) > 140
    assert drawn == [casebook(seed) for seed in range(150)]


def test_the_judge_notices_what_it_is_there_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.security import casebook_judge

    warm()

    def broken(file: Path, tokenizer: Any) -> str:
        match file.read_bytes():
            case b"hang":
                while True:
                    pass
            case b"memory":
                bytearray(2 * MOST_BYTES)
            case b"crash":
                raise ZeroDivisionError
            case b"die":
                os._exit(3)
        return "built"

    texts = [b"well", b"hang", b"memory", b"crash"]
    monkeypatch.setattr(casebook_judge, "one", broken)
    monkeypatch.setattr(casebook_judge, "casebook", lambda seed: ("planted", texts[seed]))
    found = judged(range(4), tmp_path)
    assert found.ends == {"built": 1}
    assert [re.sub(r"\(planted\)|:$", "", line).split()[:4] for line in found.wrong] == [
        ["seed", "1", ":", "took"],
        ["seed", "2", ":", "MemoryError:"],
        ["seed", "3", ":", "ZeroDivisionError:"],
    ]
    assert found.slowest_seconds >= MOST_SECONDS / 2
    texts[0] = b"die"
    (said,) = judged(range(1), tmp_path).wrong
    assert "the process ended" in said


@pytest.mark.parametrize("text", [HOSTILE_YAML[0], "&a [*a]", "!!python/object:os.system x", "[" * 400, '"\\x1b[2J"'])
def test_the_command_leaves_with_2_and_one_message(tmp_path: Path, text: str) -> None:
    from probe.command.cli import app

    file = tmp_path / "x.yaml"
    file.write_text(f"name: x\nquestion: what?\nseed: {text}\nworkload: {{needle: {{}}}}\nstages: []\n")
    said = CliRunner().invoke(app, ["run", str(file)])
    assert (said.exit_code, said.stdout) == (2, "")
    assert re.search(rf"^probe: {re.escape(str(file))}:3:\d+: ", said.stderr)
    assert "\x1b" not in said.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("samples: 1000000000", "5000000000 samples in all are more than 100,000"),
        ("lengths: [1000000000]", "1000000000 tokens are more than 16,777,216"),
        ("max_new_tokens: 1000000000", "1000000000 tokens are more than 16,777,216"),
        (f"haystack: [{'1, ' * 6_000}1]", "more than 3000 values"),
        (f"success_rule: {'x' * 50_000}", "x…"),
    ],
)
@pytest.mark.parametrize("workload", ["needle", "passkey"])
def test_what_no_machine_could_do_is_refused_before_anything_of_its_size_is_made(
    tmp_path: Path, workload: str, field: str, said: str
) -> None:
    from probe.casebook import load
    from probe.errors import CasebookError

    file = tmp_path / "x.yaml"
    file.write_text(
        f"name: x\nquestion: what?\nworkload:\n  {workload}:\n    depths: [0, 0.2, 0.5, 0.7, 1]\n    {field}\n"
        "    seed: 1\nstages: [{name: read, conditions: {}}]\n"
    )
    with pytest.raises(CasebookError, match=rf"^{re.escape(str(file))}:[4-6]:\d+: ") as error:
        load(file)
    assert said in str(error.value)
    assert len(str(error.value)) < 2_000


@pytest.mark.parametrize(
    "workload",
    [
        "needle: {lengths: [64], haystack: FILE}",
        "passkey: {lengths: [64], haystack: FILE}",
        "plain_text: {lengths: [64], text: FILE}",
        "own_prompts: {file: FILE}",
        "own_documents: {lengths: [64], documents: FILE, questions: FILE}",
    ],
)
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_a_file_that_a_casebook_names_is_a_plain_one(tmp_path: Path, workload: str, kind: str) -> None:
    import probe
    from probe.casebook import load
    from probe.errors import ProbeError

    path = {"device": Path("/dev/zero"), "pipe": tmp_path / "pipe", "folder": tmp_path}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    file = tmp_path / "x.yaml"
    text = f"name: x\nquestion: what?\nworkload: {{{workload}}}\nstages: [{{name: read, conditions: {{}}}}]\n"
    file.write_text(text.replace("FILE", str(path)))
    with pytest.raises(ProbeError):
        list(load(file).build_workload().build(probe.load("needle").tokenizer))

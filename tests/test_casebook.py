"""A casebook says what is wrong with it, and where; what it plays is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe import discovery
from probe.casebook import Casebook, Override, find, load
from probe.errors import CasebookError, UsageError

GOOD = """\
format: 1
name: small
question: Does it?
workload:
  needle:
    lengths: [64]
    depths: [0.5]
    samples: 1
stages:
  - name: read
    conditions:
      baseline: {role: baseline, capture: true}
    analyses:
      - retrieval_heads: {threshold: 0.2}
  - name: ablate
    conditions:
      removed: {role: treatment, intervention: {from_finding: retrieval_heads}}
      others: {role: control, intervention: {matched_to: removed, draws: 3}}
      named: {intervention: {ablate_heads: {heads: [[2, 5]], form: zero}}}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "book.yaml"
    path.write_text(text)
    return path


def test_a_good_casebook_is_read(tmp_path: Path) -> None:
    book = load(written(tmp_path, GOOD))
    assert book.name == "small"
    assert [stage.name for stage in book.stages] == ["read", "ablate"]
    assert book.build_workload().lengths == (64,)


@pytest.mark.parametrize("name", discovery.names("casebooks"))
def test_every_casebook_that_ships_is_valid(name: str) -> None:
    assert load(name).name == name


@pytest.mark.parametrize("name", discovery.names("casebooks"))
def test_every_casebook_says_what_it_expects_and_has_a_readme_that_says_how_to_run_it(name: str) -> None:
    assert load(name).expect
    assert f"probe run {name}" in find(name).with_name("README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "after", "place", "what"),
    [
        ("question:", "qestion:", "3:1", "did you mean 'question'"),
        ("question: Does it?\n", "", "1:1", "question: Field required"),
        ("lengths: [64]", "lenghts: [64]", "6:5", "needle has no field 'lenghts'"),
        ("lengths: [64]", "lengths: [many]", "6:15", "many"),
        ("lengths: [64]", "lengths: 64", "6:5", "64"),
        ("samples: 1", "samples: 1\n    samples: 2", "9:5", "stands twice"),
        ("samples: 1", "samples: one", "8:5", "one"),
        ("  needle:", "  haystack:", "5:3", "unknown workload 'haystack'"),
        ("role: baseline", "rolle: baseline", "12:18", "did you mean 'role'"),
        ("role: baseline", "role: king", "12:18", "king"),
        ("capture: true", "capture: no", "12:34", "got 'no'"),
        ("retrieval_heads: {threshold", "retrieval_head: {threshold", "14:9", "did you mean 'retrieval_heads'"),
        ("{threshold: 0.2}", "{treshold: 0.2}", "14:27", "no parameter 'treshold'"),
        ("{threshold: 0.2}", "{threshold: high}", "14:27", "valid number"),
        ("{threshold: 0.2}", "{threshold: 7}", "14:9", "threshold 7"),
        ("{threshold: 0.2}", "{half: nope}", "14:27", "'find', 'test' or 'both'"),
        ("    analyses:", "    capture: [{entropy: {colour: 3}}]\n    analyses:", "13:16", "no parameter 'colour'"),
        ("    analyses:", "    capture: [{top_keys: {k: many}}]\n    analyses:", "13:16", "k = 'many'"),
        ("lengths: [64]", "lengths: [true]", "6:15", "valid integer"),
        ("lengths: [64]", "lengths: ['64']", "6:15", "valid integer"),
        ("matched_to: removed", "matched_to: others", "18:46", "names no heads of its own"),
        ("from_finding: retrieval_heads", "from_finding: attention_sinks", "17:49", "no earlier stage runs"),
        ("matched_to: removed", "matched_to: removd", "18:46", "no condition 'removd'"),
        ("from_finding: retrieval_heads", "from_finding: retrieval_heads, plays: ablate", "17:80", "'ablate_heads'"),
        ("from_finding: retrieval_heads", "from_finding: retrieval_heads, plays: tova", "17:34", "budget: Field"),
        ("draws: 3", "draws: 0", "18:67", "greater than or equal to 1"),
        ("ablate_heads:", "ablate_head:", "19:30", "did you mean 'ablate_heads'"),
        ("form: zero", "form: nil", "19:62", "nil"),
        ("name: ablate", "name: read", "15:5", "two stages are named 'read'"),
        ("format: 1", "format: 2", "1:1", "got 2"),
        ("question: Does it?", "question: &q Does it?", "3:11", "aliases"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, before: str, after: str, place: str, what: str) -> None:
    assert GOOD.count(before) >= 1
    path = written(tmp_path, GOOD.replace(before, after, 1))
    with pytest.raises(CasebookError) as error:
        load(path)
    assert f"{path}:{place}: " in str(error.value)
    assert what in str(error.value)
    assert error.value.exit_code == 2


def test_an_unknown_casebook_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'first-look'"):
        find("first-lok")


def test_overrides_stand_over_the_casebook(tmp_path: Path) -> None:
    book = load(written(tmp_path, GOOD.replace("samples: 1", "samples: 4")))
    changed = Override(model="other", seed=7, lengths=(64, 128), depths=(0.0,), samples=2).apply(book)
    workload = changed.build_workload()
    assert (changed.model, changed.seed) == ("other", 7)
    assert (workload.lengths, workload.depths, workload.samples) == ((64, 128), (0.0,), 2)


def test_the_seed_draws_the_prompts_unless_the_workload_has_its_own(tmp_path: Path) -> None:
    book = load(written(tmp_path, GOOD))
    assert Override(seed=7).apply(book).build_workload().seed == 7
    own = load(written(tmp_path, GOOD.replace("samples: 1", "samples: 1\n    seed: 3")))
    assert Override(seed=7).apply(own).build_workload().seed == 3


def test_a_limit_never_raises_the_number_of_samples(tmp_path: Path) -> None:
    book = load(written(tmp_path, GOOD))
    assert Override(samples=100).apply(book).build_workload().samples == 1


def test_a_limit_holds_for_conditions_that_say_how_many_samples_they_read(tmp_path: Path) -> None:
    text = (
        "format: 1\nname: x\nquestion: Is it so?\nworkload: {needle: {lengths: [64], samples: 8}}\nstages:\n"
        "  - name: read\n    conditions:\n      baseline: {role: baseline}\n"
        "      few: {workload: {needle: absent, samples: 4}}\n    analyses: []\n"
    )
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    for limit, read in ((1, 1), (6, 4)):
        few = Override(samples=limit).apply(load(path)).stages[0].conditions["few"]
        assert few.workload == {"needle": "absent", "samples": read}


def test_a_casebook_survives_its_own_json(tmp_path: Path) -> None:
    book = load(written(tmp_path, GOOD))
    assert Casebook.model_validate_json(book.model_dump_json()) == book

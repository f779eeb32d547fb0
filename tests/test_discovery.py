"""What a room holds is found without importing it; what other packages add is named when it breaks."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import probe
from probe import discovery
from probe.errors import UsageError

STATISTIC = '''
"""About the file."""
raise RuntimeError("imported")


class entropy(Statistic):
    """−Σ p log p, e.g. over two
    equal keys log 2. More."""
'''


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of rooms of its own, in place of the shipped ones."""
    for room in discovery.ROOMS:
        (tmp_path / room).mkdir()
    monkeypatch.setattr(probe, "__path__", [str(tmp_path)])
    monkeypatch.setattr(discovery, "entry_points", lambda group: [])
    return tmp_path


def plugin(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    made = [EntryPoint(name, value, "probe.analyses") for name, value in entries]
    monkeypatch.setattr(discovery, "entry_points", lambda group: made if group == "probe.analyses" else [])


def test_a_member_is_found_and_described_without_being_imported(house: Path) -> None:
    (house / "kernels" / "entropy.py").write_text(STATISTIC)
    assert discovery.modules("kernels") == {"entropy": "probe.kernels.entropy"}
    assert discovery.describe("kernels", "entropy") == "−Σ p log p, e.g. over two equal keys log 2."


@pytest.mark.parametrize(
    ("room", "name", "text"),
    [
        ("kernels", "scan", "class Scan: ..."),
        ("kernels", "dense", "def dense(): ..."),
        ("kernels", "block", "class block: ..."),
        ("kernels", "_hidden", "class _hidden(Statistic): ..."),
        ("hooks", "weights", "class weights: ..."),
        ("analyses", "figures", "def figures(): ..."),
        ("analyses", "copying", "from x import copying"),
        ("kernels", "outer", "def f():\n    class outer(Statistic): ..."),
    ],
)
def test_files_that_members_share_are_none(house: Path, room: str, name: str, text: str) -> None:
    (house / room / f"{name}.py").write_text(text)
    assert discovery.names(room) == []


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("kernels", "class x(Statistic): ..."),
        ("kernels", "class x(statistic.Statistic): ..."),
        ("hooks", "class x(Intervention): ..."),
        ("analyses", "@analysis(question='?', source='s')\ndef x(run): ..."),
        ("analyses", "@probe.analysis.analysis(question='?', source='s')\ndef x(run): ..."),
        ("workloads", "class x: ..."),
    ],
)
def test_a_file_that_holds_a_member_of_its_name_is_one(house: Path, room: str, text: str) -> None:
    (house / room / "x.py").write_text(text)
    assert discovery.names(room) == ["x"]


def test_a_casebook_is_the_yaml_file_of_its_folder(house: Path) -> None:
    path = house / "casebooks" / "first-look" / "first-look.yaml"
    for folder in ("first-look", "_draft", "published"):
        (house / "casebooks" / folder).mkdir()
    path.write_text('# probe\ntitle: "What is wrong?"\n')
    (house / "casebooks" / "_draft" / "_draft.yaml").write_text("")
    (house / "casebooks" / "first-look" / "smaller.yaml").write_text("")
    figure = house / "casebooks" / "published" / "a-figure.yaml"
    figure.write_text("question: Is it so?\npublished:\n  state: not run here\n")
    assert discovery.modules("published") == {"a-figure": str(figure)}
    assert discovery.describe("published", "a-figure") == "Is it so? [not run here]"
    assert discovery.modules("casebooks") == {"first-look": str(path)}
    assert discovery.get("casebooks", "first-look") == path
    assert discovery.describe("casebooks", "first-look") == "What is wrong?"


@pytest.mark.parametrize("ask", [discovery.get, discovery.describe])
def test_an_unknown_name_is_answered_with_those_that_exist(house: Path, ask: Any) -> None:
    (house / "kernels" / "entropy.py").write_text(STATISTIC)
    with pytest.raises(UsageError, match="no statistic 'entropi'; there are entropy"):
        ask("kernels", "entropi")
    with pytest.raises(UsageError, match="no room 'attic'; there are kernels"):
        discovery.names("attic")


def test_a_file_that_is_not_python_is_named(house: Path) -> None:
    (house / "analyses" / "x.py").write_text("def x(:")
    with pytest.raises(UsageError, match=r"x\.py is not Python"):
        discovery.names("analyses")


def test_other_packages_add_members(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(monkeypatch, ("theirs", "json:dumps"), ("_hidden", "json:loads"), ("decoder", "json.decoder:JSONDecoder"))
    assert discovery.modules("analyses") == {"decoder": "json.decoder:JSONDecoder", "theirs": "json:dumps"}
    assert discovery.get("analyses", "theirs")([1]) == "[1]"
    assert discovery.describe("analyses", "decoder").startswith("Simple JSON")


@pytest.mark.parametrize("value", ["no_such_module_anywhere:x", "json:no_such_object", "json"])
def test_a_broken_plugin_is_named(house: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    plugin(monkeypatch, ("theirs", value))
    with pytest.raises(UsageError, match=rf"analysis 'theirs' \({value}\) cannot be loaded: \w+Error"):
        discovery.get("analyses", "theirs")
    assert discovery.names("analyses") == ["theirs"]
    assert discovery.describe("analyses", "theirs")


def test_a_plugin_cannot_take_the_place_of_a_shipped_member(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (house / "analyses" / "x.py").write_text("@analysis()\ndef x(run): ...")
    plugin(monkeypatch, ("x", "json:dumps"))
    with pytest.warns(UserWarning, match=r"'x' \(json:dumps\).*left out"):
        assert discovery.modules("analyses") == {"x": "probe.analyses.x"}


_LISTS = """
import sys
from probe import discovery
for room in discovery.ROOMS:
    for name in discovery.names(room):
        assert discovery.describe(room, name), name
print(sorted({"torch", "numpy", "transformers", "xarray"} & set(sys.modules)))
"""


def test_everything_shipped_is_described_and_listing_imports_nothing_heavy() -> None:
    root = Path(probe.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", _LISTS], cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("room", [room for room in discovery.ROOMS if room not in ("casebooks", "published")])
def test_every_shipped_member_can_be_had(room: str) -> None:
    for name in discovery.names(room):
        assert discovery.get(room, name).__name__ == name

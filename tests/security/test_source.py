"""No source of this toolkit unpickles, runs text, opens a shell or asks the network; what a few may do is listed."""

from __future__ import annotations

import fnmatch
import functools
import re
from pathlib import Path
from typing import Final

import pytest

from tests.security.forbidden import MODULES, NAMES, Found, forbidden

ROOT: Final = Path(__file__).resolve().parents[2]
ROOMS: Final = ("probe", "kernels", "hooks", "analyses", "dashboard", "casebooks")

ALLOWED: Final = {
    "probe/__init__.py": ({"importlib.import_module"}, "brings public names, from a table of its own and from rooms"),
    "probe/discovery.py": ({"importlib.import_module"}, "brings the members of rooms and of installed packages"),
    "hooks/loading/find_model.py": ({"urllib.request"}, "asks whether the environment names a proxy; fetches nothing"),
    "probe/command/checkup.py": ({"socket.socket"}, "tries whether the explorer's port is free"),
    "probe/engines/ray_cluster.py": ({"socket.create_connection"}, "tries whether anybody is at --engine-address"),
    "probe/reporting/report.py": ({"markupsafe.Markup"}, "puts markup of its own around what it escaped"),
    "probe/benchmark/model_cases.py": ({"torch.manual_seed"}, "makes weights by chance, as transformers draws them"),
    "probe/conformance/random_model.py": ({"torch.manual_seed"}, "makes weights by chance, as transformers draws them"),
    "casebooks/specimens/*/train.py": ({"torch.manual_seed"}, "a script that is a process of its own"),
}
"""What a file may do besides, and why."""

SOURCES: Final = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def allowed(name: str) -> set[str]:
    return {what for pattern, (names, _) in ALLOWED.items() if fnmatch.fnmatch(name, pattern) for what in names}


@functools.cache
def found() -> dict[str, list[Found]]:
    """What is forbidden in each source, the allowed among it."""
    names = {path.relative_to(ROOT).as_posix(): path for path in SOURCES}
    # Statistics and models know no file and no user: what they assert is of their own making.
    return {
        name: forbidden(path.read_bytes(), asserts=name.startswith(("kernels/", "hooks/")))
        for name, path in names.items()
    }


def test_no_source_does_what_is_forbidden() -> None:
    wrong = [
        f"{name}:{line}: {what}: {why}"
        for name, each in found().items()
        for line, what, why in each
        if what not in allowed(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_allowed_that_nobody_does() -> None:
    done = {(name, each.what) for name, several in found().items() for each in several}
    for pattern, (names, _) in ALLOWED.items():
        for what in names:
            assert any(fnmatch.fnmatch(name, pattern) and what == other for name, other in done), (pattern, what)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", "pickle"),
        ("def f():\n    from xml.etree import ElementTree", "xml"),
        ("import requests as asking", "requests"),
        ("from urllib import request", "urllib.request"),
        ("eval('1')", "eval"),
        ("f = exec", "exec"),
        ("import builtins\nbuiltins.eval('1')", "eval"),
        ("import os as o\no.system('x')", "os.system"),
        ("from os import system as s\ns('x')", "os.system"),
        ("import os\nos.execvp('x', [])", "os.execvp"),
        ("import subprocess as s\ns.run('x', shell=True)", "shell"),
        ("import subprocess\nsubprocess.run('x', shell=flag)", "shell"),
        ("import tempfile\ntempfile.mktemp()", "tempfile.mktemp"),
        ("import yaml\nyaml.safe_load(x)", "yaml.safe_load"),
        ("from yaml import load", ""),
        ("from yaml import load\nload(x)", "yaml.load"),
        ("import torch as t\nt.load('x')", "torch.load"),
        ("import torch\ntorch.load('x', weights_only=False)", "torch.load"),
        ("import torch\ntorch.load('x', weights_only=True)", ""),
        ("x.from_file('y', weights_only=False)", "weights_only"),
        ("import numpy as np\nnp.load('x')", ""),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle"),
        ("import numpy as np\nnp.load('x', None, True)", "allow_pickle"),
        ("import numpy as np\nnp.save('x', y, allow_pickle=False)", ""),
        ("import random\nrandom.seed(0)", "random.seed"),
        ("from random import shuffle\nshuffle(x)", "random.shuffle"),
        ("import random\nrandom.Random(0).shuffle(x)", ""),
        ("x = hash(y)", "hash"),
        ("class A:\n    def __hash__(self):\n        return hash(1)", ""),
        ("import jinja2\njinja2.Environment()", "jinja2.Environment"),
        ("import jinja2\njinja2.Environment(autoescape=True)", ""),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code"),
        ("AutoModel.from_pretrained(x, trust_remote_code=asked)", ""),
        ("app.run(debug=True)", "debug"),
        ("app.run(host='0.0.0.0')", "0.0.0.0"),
        ("from importlib import import_module as i\ni(name)", "importlib.import_module"),
        ("import importlib\nimportlib.import_module(f'probe.hooks.{name}')", ""),
        ("import importlib\nimportlib.import_module(f'{name}.x')", "importlib.import_module"),
        ("archive.extractall('x')", "extractall"),
        ("assert value > 3", "assert"),
        ("assert isinstance(value, int) and value > 3", "assert"),
        ("assert value is not None", ""),
        ("model.eval()\nre.compile('x')\ntorch.compile(f)", ""),
    ],
)
def test_the_rule_catches_what_it_forbids(source: str, what: str) -> None:
    assert {each.what for each in forbidden(source)} - {"urllib"} == ({what} if what else set())


def test_whatever_is_forbidden_is_found_under_any_name() -> None:
    for module in MODULES:
        assert module in {each.what for each in forbidden(f"import {module} as harmless")}
    for name in NAMES:
        module, _, attribute = name.rpartition(".")
        sources = [f"from {module} import {attribute} as harmless\nharmless()"] if module else [f"{name}()"]
        sources += [f"import {module} as harmless\nx = harmless.{attribute}"] if module else [f"y = {name}"]
        for source in sources:
            assert name in {each.what for each in forbidden(source)}, source


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "dashboard/assets").glob("*.js")), *sorted((ROOT / "probe/reporting/templates").glob("*"))],
    ids=lambda path: path.name,
)
def test_no_page_makes_markup_or_code_of_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    made = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\|\s*safe\b|autoescape\s+false"
    )
    assert not re.search(made, text)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", text), "something would be asked of elsewhere"

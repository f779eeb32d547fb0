"""How the folders make one package, and which of them may know which."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import probe
from probe import discovery
from probe.axes import AXES

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("kernels", "hooks", "analyses", "casebooks", "dashboard")
STREET = ("kernels", "hooks", "analyses", "dashboard", "probe/workloads")

COMPOSITION = {
    "__main__", "benchmark", "calibration", "capture", "casebook", "command", "conformance", "costs", "dry_run",
    "encoder_decoder_reader", "encoder_reader", "engines", "estimate", "head_gates", "kept_vectors", "live",
    "matched_sets", "plan", "player", "playing", "prepare", "progress", "ranked_capture", "ranked_reader", "reader",
    "reader_class", "reading_cost", "reporting", "requested", "run_identity", "score_agreement",
}  # fmt: skip
"""Files and folders of probe/ that may import everything, and that nobody else imports. The rest is vocabulary."""

OURS = {
    "vocabulary": {"vocabulary"},
    "workloads": {"vocabulary", "workloads"},
    "kernels": {"vocabulary", "kernels"},
    "hooks": {"vocabulary", "kernels", "hooks"},
    "analyses": {"vocabulary", "analyses"},
    "dashboard": {"vocabulary", "analyses", "dashboard"},
    "composition": {"vocabulary", "workloads", "kernels", "hooks", "analyses", "dashboard", "composition"},
    "casebooks": {"vocabulary", "workloads", "kernels", "hooks", "analyses", "composition"},
}
"""What of ours each room may import."""

NUMBERS = {"numpy", "scipy", "xarray", "zarr", "numcodecs", "pydantic", "jaxtyping"}
TEXT = {"plotly", "yaml", "rich", "typer", "jinja2", "markupsafe", "packaging"}
MODELS = {"torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "accelerate"}
THEIRS = {
    "vocabulary": NUMBERS | {"plotly", "yaml", "fsspec"},
    "workloads": NUMBERS,
    "kernels": NUMBERS | {"torch", "triton"},
    "hooks": NUMBERS | MODELS | {"transformer_lens", "nnsight"},
    "analyses": NUMBERS | {"plotly"},
    "dashboard": NUMBERS
    | {"plotly", "dash", "dash_mantine_components", "dash_ag_grid", "flask", "werkzeug", "IPython"},
    "composition": NUMBERS | TEXT | MODELS | {"ray"},
    "casebooks": NUMBERS | MODELS,
}
"""What of other people's each room may import, besides the standard library."""

HEAVY = {"torch", "transformers", "triton", "tokenizers", "safetensors"}


def room_of(module: str) -> str:
    """Return the room of one of our modules, by its dotted name."""
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in (*MAPPED, "workloads"):
        return parts[1]
    return "composition" if len(parts) > 1 and parts[1] in COMPOSITION else "vocabulary"


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "probe").rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path
    for folder in MAPPED:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield "probe." + ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every module that a file imports, at its top or inside, those for type checkers alone left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides the room"
            inside = node.module == "probe"
            yield from (f"probe.{alias.name}" for alias in node.names) if inside else [str(node.module)]
        yield from imported(node)


@pytest.mark.parametrize(("module", "path"), list(sources()), ids=lambda value: value if isinstance(value, str) else "")
def test_the_street_has_one_way(module: str, path: Path) -> None:
    room = room_of(module)
    for name in imported(ast.parse(path.read_bytes())):
        top = name.split(".")[0]
        if top == "probe":
            assert name == "probe" or room_of(name) in OURS[room], f"{room} must not import {name}"
        elif top not in sys.stdlib_module_names:
            assert top in THEIRS[room], f"{room} must not import {top}"


def test_the_rule_catches_what_it_forbids() -> None:
    tree = ast.parse("def f():\n    import torch.nn\n    from probe import player\n    from probe.hooks import x")
    assert list(imported(tree)) == ["torch.nn", "probe.player", "probe.hooks"]
    assert room_of("probe.player") == "composition"
    assert room_of("probe.hooks") == "hooks"


@pytest.mark.parametrize("folder", MAPPED)
def test_mapped_folders_are_no_packages_of_their_own(folder: str) -> None:
    assert not list((ROOT / folder).rglob("__init__.py"))


@pytest.mark.parametrize("path", [path for _, path in sources()], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_grows_beyond_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_every_room_is_in_the_packaging() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    files = (path for folder in MAPPED for depth in ("*.*", "*/*.*") for path in (ROOT / folder).glob(depth))
    with_code = {f"probe.{path.relative_to(ROOT).parts[0]}" for path in files}
    inside = {f"probe.{path.parent.name}" for path in (ROOT / "probe").glob("*/__init__.py")}
    for room in MAPPED:
        inside |= {f"probe.{room}.{path.parent.name}" for path in (ROOT / room).glob("*/*.py")}
    assert set(setuptools["packages"]) == {"probe"} | inside | with_code
    assert {name for name in setuptools["package-dir"] if name != "probe"} == with_code


def test_the_stub_names_what_the_package_gives() -> None:
    tree = ast.parse((ROOT / "probe" / "__init__.pyi").read_text(encoding="utf-8"))
    stubbed = {node.names[0].asname: node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert stubbed == probe._public()


def python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    """Run code in a fresh interpreter that knows the repository only by `path`, and return what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


IMPORT_ALL = """
import importlib, json, sys, probe
from probe import discovery
rooms = ["analyses", "kernels", "hooks", "workloads"]
found = {room: discovery.names(room) for room in rooms}
for room in rooms[:int(sys.argv[1]) if len(sys.argv) > 1 else 1]:
    for name in found[room]:
        discovery.get(room, name)
print(json.dumps({"file": probe.__file__, "found": found, "modules": sorted(sys.modules)}))
"""


def test_it_works_uninstalled_from_anywhere(tmp_path: Path) -> None:
    for told in (
        json.loads(python(IMPORT_ALL, cwd=ROOT, path=ROOT)),
        json.loads(python(IMPORT_ALL, cwd=tmp_path, path=ROOT)),
    ):
        assert Path(told["file"]).is_relative_to(ROOT)
        assert "retrieval_heads" in told["found"]["analyses"]


@pytest.mark.parametrize("folder", ["kernels", "hooks", "analyses", "casebooks", "dashboard"])
def test_somebody_elses_package_of_the_same_name_wins(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "__init__.py").write_text("THEIRS = True")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import probe, {folder}; print({folder}.THEIRS)"
    assert python(code, cwd=ROOT, path=ROOT).strip() == "True"


@pytest.mark.parametrize(
    "module",
    [
        "probe",
        "probe.storage.trace_store",
        "probe.reporting.report",
        "probe.command.listing",
        "probe.command.cli",
        "probe.workloads.needle",
        "probe.dashboard.application.serving",
    ],
)
def test_what_reads_traces_imports_no_torch(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    assert not HEAVY & set(python(code, cwd=tmp_path, path=ROOT).split())


def test_no_analysis_imports_torch(tmp_path: Path) -> None:
    assert not HEAVY & set(json.loads(python(IMPORT_ALL, cwd=tmp_path, path=ROOT))["modules"])


def test_help_starts_light(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['probe', '--help']\nfrom probe.command.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    heavy = {*HEAVY, "numpy", "pydantic", "xarray", "zarr", "plotly", "scipy"}
    assert not heavy & set(python(code, cwd=tmp_path, path=ROOT).split())


def test_no_module_hides_a_public_name() -> None:
    modules = {path.stem for path in (ROOT / "probe").iterdir()} | set(MAPPED)
    assert not modules & set(probe._public())


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: building in place would leave folders behind, and pick up old ones."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("probe", *(folder for folder in MAPPED if (ROOT / folder).exists())):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return copy


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_top_level_of_the_wheel_is_probe_alone(unpacked: Path) -> None:
    tops = {path.name for path in unpacked.iterdir()}
    assert tops == {"probe", f"longcontext_probe-{probe.__version__}.dist-info"}


def test_the_wheel_holds_every_source_and_what_they_read(unpacked: Path) -> None:
    expected = {f"probe/{path.relative_to(ROOT / 'probe').as_posix()}" for path in (ROOT / "probe").rglob("*.py")}
    for folder in MAPPED:
        expected |= {f"probe/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / folder).rglob("*.py")}
    expected |= {f"probe/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "casebooks").glob("*/*.yaml")}
    for pattern in ("*.json", "*.safetensors", "*.md"):
        expected |= {f"probe/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "casebooks/specimens").rglob(pattern)}
    expected |= {f"probe/reporting/templates/{path.name}" for path in (ROOT / "probe/reporting/templates").iterdir()}
    expected |= {f"probe/dashboard/assets/{path.name}" for path in (ROOT / "dashboard/assets").iterdir()}
    expected |= {"probe/py.typed", "probe/__init__.pyi"}
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert expected - held == set()


def test_the_wheel_is_small_and_carries_its_licence(wheel: Path, unpacked: Path) -> None:
    assert wheel.stat().st_size < 20e6
    assert "Apache License" in next(unpacked.glob("*.dist-info/licenses/LICENSE")).read_text(encoding="utf-8")


def test_the_wheel_lists_what_the_checkout_lists(unpacked: Path, tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['probe', 'list', '--json']; from probe.command.cli import main; main()"
    from_wheel = json.loads(python(code, cwd=tmp_path, path=unpacked))
    assert from_wheel == json.loads(python(code, cwd=ROOT, path=ROOT))
    assert "first-look" in from_wheel["casebooks"]


def test_everything_in_the_wheel_imports(unpacked: Path, tmp_path: Path) -> None:
    told = json.loads(python("import sys; sys.argv.append('4')\n" + IMPORT_ALL, cwd=tmp_path, path=unpacked))
    assert Path(told["file"]).is_relative_to(unpacked)
    assert told["found"] == {room: discovery.names(room) for room in told["found"]}


def test_an_editable_install_works_from_elsewhere(checkout: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-input",
        "--prefix", str(tmp_path / "prefix"), "--editable", str(checkout),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (site,) = (tmp_path / "prefix").glob("lib*/python*/site-packages")
    told = json.loads(python(f"import site; site.addsitedir({str(site)!r})\n" + IMPORT_ALL, cwd=tmp_path))
    assert Path(told["file"]).is_relative_to(checkout)
    assert told["found"] == {room: discovery.names(room) for room in told["found"]}


def test_ruff_is_content() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_undefined_name_is_an_axis() -> None:
    """An axis word in a shape annotation looks like an undefined name, so the lint is off where shapes are written."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "json"]
    done = subprocess.run([*command, "kernels", "hooks"], cwd=ROOT, capture_output=True, text=True)
    names = {complaint["message"].split("`")[1] for complaint in json.loads(done.stdout)}
    assert names <= {*AXES, "batch", "vocabulary"}


def test_the_wheel_is_typed_strictly(unpacked: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"),
        "--cache-dir", str(tmp_path / "cache"), "-p", "probe",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_triton_functions_lack_annotations():
    for path in (ROOT / "kernels").glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef) or "jit" in map(ast.unparse, function.decorator_list):
                continue
            # What stands in for the decorator where Triton is missing.
            if function.name == "jit" and path.name == "triton_language.py":
                continue
            arguments = [a for a in (*function.args.args, *function.args.kwonlyargs) if a.arg not in ("self", "cls")]
            bare = [a.arg for a in arguments if a.annotation is None]
            assert not bare, f"{path.name}: {function.name} does not say what {', '.join(bare)} is"
            assert function.returns is not None, f"{path.name}: {function.name} does not say what it returns"

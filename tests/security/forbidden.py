"""What no source of this toolkit may do, found in its syntax tree: whatever a name was imported as."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final, NamedTuple

MODULES: Final = {
    "pickle": "reading a pickle runs code",
    "_pickle": "reading a pickle runs code",
    "cloudpickle": "reading a pickle runs code",
    "dill": "reading a pickle runs code",
    "joblib": "its files are pickles",
    "shelve": "its files are pickles",
    "marshal": "reading damaged bytes crashes",
    "diskcache": "its files are pickles",
    "jsonpickle": "reading one runs code",
    "torch.hub": "it downloads code and runs it",
    "torch.package": "its files are pickles",
    "xml": "entities grow without bound",
    "lxml": "entities grow without bound",
    "tarfile": "its members may lead out of the folder",
    "pty": "a shell",
    "telnetlib": "the network",
    "ftplib": "the network",
    "smtplib": "the network",
    "http.client": "the network",
    "urllib.request": "the network",
    "urllib3": "the network",
    "requests": "the network",
    "httpx": "the network",
    "aiohttp": "the network",
    "socketserver": "the network",
    "xmlrpc": "the network",
}
"""Modules that no file imports, with what is inside them."""

NAMES: Final = {
    "eval": "it runs text",
    "exec": "it runs text",
    "compile": "it makes code of text",
    "__import__": "use importlib.import_module",
    "breakpoint": "a debugger",
    "hash": "it differs from process to process (PYTHONHASHSEED)",
    "os.system": "a shell",
    "os.popen": "a shell",
    "os.startfile": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "asyncio.create_subprocess_shell": "a shell",
    "tempfile.mktemp": "another process may take the name first",
    "os.tempnam": "another process may take the name first",
    "yaml.load": "probe.strict_yaml reads YAML",
    "yaml.load_all": "probe.strict_yaml reads YAML",
    "yaml.full_load": "probe.strict_yaml reads YAML",
    "yaml.unsafe_load": "probe.strict_yaml reads YAML",
    "yaml.safe_load": "probe.strict_yaml reads YAML",
    "yaml.safe_load_all": "probe.strict_yaml reads YAML",
    "yaml.Loader": "it makes objects",
    "yaml.FullLoader": "it makes objects",
    "yaml.UnsafeLoader": "it makes objects",
    "torch.jit.load": "it runs what the file holds",
    "torch.export.load": "it runs what the file holds",
    "torch.serialization.add_safe_globals": "it lets a file make objects",
    "numpy.lib.npyio.NpzFile": "use safetensors",
    "pandas.read_pickle": "reading a pickle runs code",
    "numcodecs.Pickle": "reading a pickle runs code",
    "numcodecs.pickles.Pickle": "reading a pickle runs code",
    "hashlib.md5": "it can be forged; use sha256",
    "hashlib.sha1": "it can be forged; use sha256",
    "random.seed": "it changes everybody's generator; use random.Random",
    "numpy.random.seed": "it changes everybody's generator; use numpy.random.default_rng",
    "torch.manual_seed": "it changes everybody's generator; use torch.Generator",
    "socket.socket": "only what serves or locks needs one",
    "socket.create_connection": "the network",
    "markupsafe.Markup": "only the report writes markup",
    "jinja2.Template": "it escapes nothing; use an Environment with autoescape=True",
}
"""Objects that no file names."""

CALLS_OF_GLOBAL_RANDOM: Final = frozenset(
    ("random", "randint", "randrange", "choice", "choices", "sample", "shuffle", "uniform", "gauss", "getrandbits")
)


class Found(NamedTuple):
    """One thing that is forbidden."""

    line: int
    """Where it stands."""
    what: str
    """Its name: of the module or the object, or of the rule."""
    why: str
    """What is wrong with it."""


def forbidden(source: str | bytes, *, asserts: bool = False) -> list[Found]:
    """Return what a source does that none may; `asserts`: an assert may do more than tell a type checker a type."""
    tree = ast.parse(source)
    known = dict(_imported(tree))
    found = [*_modules(tree)]
    inside_hash = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == "__hash__"
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = _dotted(node, known)
            if name in NAMES and not (name == "hash" and id(node) in inside_hash):
                found.append(Found(node.lineno, name, NAMES[name]))
            elif name.startswith("random.") and name.removeprefix("random.") in CALLS_OF_GLOBAL_RANDOM:
                found.append(Found(node.lineno, name, "the generator is everybody's; use random.Random"))
            elif name.startswith(("os.exec", "os.spawn", "os.posix_spawn")):
                found.append(Found(node.lineno, name, "use subprocess with a list"))
        if isinstance(node, ast.Call):
            found += _of_call(node, _dotted(node.func, known))
        if isinstance(node, ast.Assert) and not asserts and not _narrows(node.test):
            found.append(Found(node.lineno, "assert", "python -O leaves it out; raise an error that says why"))
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            found.append(Found(node.lineno, str(node.value), "every address of the machine"))
    return sorted(set(found))


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield what each name of a file stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (top, top)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _modules(tree: ast.AST) -> Iterator[Found]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            for module, why in MODULES.items():
                if name == module or name.startswith(f"{module}."):
                    yield Found(getattr(node, "lineno", 0), module, why)


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    """Return the full name of what an expression names, empty where it names nothing that was imported or built in."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        # The last part alone tells a method, whatever the object.
        return ""
    first = known.get(node.id, node.id)
    # `model.eval` is no builtin: only a name of its own is.
    return ".".join([first, *reversed(parts)]).removeprefix("builtins.")


def _of_call(node: ast.Call, name: str) -> Iterator[Found]:
    given = {keyword.arg: keyword.value for keyword in node.keywords}

    def is_literally(key: str, value: object) -> bool:
        return key in given and isinstance(given[key], ast.Constant) and given[key].value is value  # type: ignore[attr-defined]

    method = node.func.attr if isinstance(node.func, ast.Attribute) else name.rpartition(".")[2]
    if name == "torch.load" and not is_literally("weights_only", True):
        yield Found(node.lineno, "torch.load", "without weights_only=True it runs what the file holds")
    if "allow_pickle" in given and not is_literally("allow_pickle", False):
        yield Found(node.lineno, "allow_pickle", "reading a pickle runs code")
    if name == "numpy.load" and len(node.args) > 2:
        yield Found(node.lineno, "allow_pickle", "reading a pickle runs code")
    if "shell" in given and not is_literally("shell", False):
        yield Found(node.lineno, "shell", "a shell reads what stands in an argument")
    if is_literally("trust_remote_code", True):
        yield Found(node.lineno, "trust_remote_code", "only a person may say so")
    if name != "torch.load" and "weights_only" in given and not is_literally("weights_only", True):
        yield Found(node.lineno, "weights_only", "it runs what the file holds")
    if "debug" in given and not is_literally("debug", False) and method in ("run", "run_server", "run_simple"):
        yield Found(node.lineno, "debug", "the debugger of a server runs code")
    if name == "importlib.import_module" and not (node.args and _stated(node.args[0])):
        yield Found(node.lineno, name, "which module it imports is decided elsewhere")
    if name == "jinja2.Environment" and not is_literally("autoescape", True):
        yield Found(node.lineno, "jinja2.Environment", "without autoescape=True a text is markup")
    if method in ("extractall", "read_pickle", "to_pickle"):
        yield Found(node.lineno, method, "a file's own names decide where it writes, or it is a pickle")
    if "verify" in given and is_literally("verify", False):
        yield Found(node.lineno, "verify", "anybody may answer")


def _stated(module: ast.expr) -> bool:
    """Return whether the name of a module stands in the source, or begins with this package's own."""
    if isinstance(module, ast.JoinedStr) and module.values:
        first = module.values[0]
        return isinstance(first, ast.Constant) and str(first.value).startswith("probe.")
    return isinstance(module, ast.Constant)


def _narrows(test: ast.expr) -> bool:
    """Return whether an assert says no more than a type: `x is not None`, `isinstance(x, T)`."""
    if isinstance(test, ast.Compare):
        return len(test.ops) == 1 and isinstance(test.ops[0], ast.IsNot)
    return isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "isinstance"

"""Which code of a checkpoint's own was run to load a model and its tokenizer."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

# transformers puts what it loads from a checkpoint into a package of this name.
_PACKAGE = "transformers_modules"


def remote_code(*made: object, ran: tuple[str, ...] = ()) -> str | None:
    """Return the files that came with a checkpoint and were run, each with its SHA-256, in one line; None for none.

    Those that the classes of `made` are from, and those of `ran`: a checkpoint's file may run and yet leave the model
    to transformers' own class.
    """
    modules = {kind.__module__ for each in made for kind in type(each).__mro__ if _is_remote(kind.__module__)}
    said = []
    for name in sorted({*modules, *ran}):
        file = getattr(sys.modules.get(name), "__file__", None)
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else "unknown"
        said.append(f"{name.rpartition('.')[2]}.py (SHA-256 {digest})")
    return ", ".join(said) or None


def code_of(name: str) -> tuple[str, ...]:
    """Return the modules that were run from the checkpoint called `name`, a folder or a hub id."""
    # transformers puts every letter that no module's name may have into words of its own; dots and dashes alike.
    wanted = _letters(Path(name).name)
    return tuple(
        module
        for module, loaded in sys.modules.items()
        if _is_remote(module)
        and getattr(loaded, "__file__", None)
        and not str(loaded.__file__).endswith("__init__.py")
        and any(_letters(part) == wanted for part in module.split("."))
    )


def _is_remote(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower().replace("_dot_", "").replace("_hyphen_", ""))

"""Which code of a checkpoint's own a model or a tokenizer is made of."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

# transformers puts what it loads from a checkpoint into a package of this name.
_PACKAGE = "transformers_modules"


def remote_code(*made: object) -> str | None:
    """Return the classes that came with a checkpoint, each with its file's SHA-256, in one line; None where none did.

    Only what was allowed by `trust_remote_code` is there; a model object that somebody else loaded tells too.
    """
    found = {}
    for each in made:
        for kind in type(each).__mro__:
            if kind.__module__.partition(".")[0] != _PACKAGE:
                continue
            file = getattr(sys.modules.get(kind.__module__), "__file__", None)
            digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else "unknown"
            name = f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
            found[name] = f"{name} (SHA-256 {digest})"
    return ", ".join(found[name] for name in sorted(found)) or None

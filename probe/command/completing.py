"""What a shell completes where a value has a name: casebooks, specimens, statistics, runs. Imports nothing heavy.

Each function takes what was typed so far and returns the values that begin so, with a sentence where there is one,
which zsh and fish show. A completion never fails in somebody's prompt: what cannot be read is not offered.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

Values = list[tuple[str, str]]
"""Values with what each is; empty where nothing is said of it."""

ALL: Final = ("all", "every casebook that ships, one after the other")
DEVICES: Final = ("cpu", "cuda", "cuda:0", "cuda:1", "mps")
DTYPES: Final = ("float32", "bfloat16", "float16")
SCANS: Final = ("auto", "triton", "blocked", "reference")
ENGINES: Final = ("local", "ray")
CACHES: Final = ("device", "offload")
FORMATS: Final = ("netcdf", "csv", "safetensors", "duo_attention")
SETS_OF_STATISTICS: Final = ("core", "five", "each")
_HARMLESS: Final = re.compile(r"[\w.,+@%=-][\w .,+@%=-]*")
"""Names of files that are offered: a shell evaluates what completes, and a folder's name may be anybody's."""


def one_of(values: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a completion of a few fixed values."""
    fixed = tuple(values)
    return lambda incomplete: [value for value in fixed if value.startswith(incomplete)]


def casebook_names(incomplete: str) -> Values:
    """Casebooks that ship, published figures among them."""
    return _members("casebooks", incomplete) + _members("published", incomplete, before="published/")


def casebooks(incomplete: str) -> Values:
    """Casebooks that ship, `all`, and YAML files."""
    every = [ALL] if ALL[0].startswith(incomplete) else []
    return casebook_names(incomplete) + every + _paths(incomplete, lambda path: path.suffix in (".yaml", ".yml"))


def models(incomplete: str) -> Values:
    """Specimens, and folders that hold a model."""
    return specimen_names(incomplete) + _paths(incomplete, lambda path: (path / "config.json").is_file())


def specimen_names(incomplete: str) -> Values:
    """Specimens that ship."""
    from probe.specimens import card_sentence, folders

    return [
        (name, card_sentence(folder / "README.md")) for name, folder in folders().items() if name.startswith(incomplete)
    ]


def runs(incomplete: str) -> Values:
    """Folders of runs, and folders on the way to one."""
    return _paths(incomplete, lambda path: (path / "run.json").is_file())


def rooms(incomplete: str) -> list[str]:
    """What `probe list` lists."""
    from probe.command.listing import ROOMS

    return [room for room in ROOMS if room.startswith(incomplete)]


def backends(incomplete: str) -> Values:
    """Libraries that have models."""
    return _members("backends", incomplete)


def statistics(incomplete: str) -> Values:
    """Sets of statistics and single ones; after a comma the next."""
    done, comma, last = incomplete.rpartition(",")
    before = done + comma
    sets = [(before + name, "") for name in SETS_OF_STATISTICS if name.startswith(last)]
    return sets + [(before + name, said) for name, said in _members("kernels", last)]


def _members(room: str, incomplete: str, before: str = "") -> Values:
    from probe import discovery

    # A plugin that takes a name twice is told of by the commands; here the warning would land in the prompt.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [name for name in discovery.names(room) if (before + name).startswith(incomplete)]
        return [(before + name, discovery.describe(room, name)) for name in names]


def _paths(incomplete: str, wanted: Callable[[Path], bool]) -> Values:
    """Return the paths that begin so: those wanted, and folders, which end with a slash, to go on from."""
    folder, slash, last = incomplete.rpartition("/")
    root = Path(folder + slash).expanduser() if slash else Path()
    found: Values = []
    try:
        for path in sorted(root.iterdir()):
            if not (path.name.startswith(last) and _HARMLESS.fullmatch(path.name)) or (
                path.name.startswith(".") and not last
            ):
                continue
            if wanted(path):
                found.append((folder + slash + path.name, ""))
            elif path.is_dir():
                found.append((folder + slash + path.name + "/", ""))
    except OSError:
        return []
    return found

"""What can be said of an installation without torch: packages, the machine, folders, specimens, tools beside it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import shutil
import socket
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import probe

State = Literal["ok", "missing", "broken"]
PACKAGE: Final = "longcontext-probe"
NOT_LISTED: Final = ("all", "docs", "test")
"""Extras that only name others, or serve whoever changes the toolkit."""
LEAST_FREE_BYTES: Final = 1 << 30
PORT: Final = 8050
"""The explorer's, unless it is given another."""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's."""

    group: str
    name: str
    state: State
    said: str
    """What was found, or why it is missing or broken. Names no folder of whoever asks."""
    cure: str = ""
    """What to do; empty where there is nothing."""
    needed: bool = False
    """Whether nothing can be played without it."""


def without_places(text: str) -> str:
    """Return a text with this process's folders and the user's home taken out of it, as it may go into a bug report."""
    places = {str(Path.cwd()): ".", sys.prefix: "<environment>", str(Path.home()): "~", tempfile.gettempdir(): "<tmp>"}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = text.replace(place, places[place])
    return text


def packages() -> Iterator[Check]:
    """Yield Python, what is declared as needed, and each extra, held against the ranges that are declared."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python, needed, extras = declared()
    version = platform.python_version()
    fits = SpecifierSet(python).contains(version, prereleases=True)
    yield Check(
        "packages", "python", "ok" if fits else "broken", version if fits else f"{version}, not {python}", needed=True
    )
    for text in needed:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield package(requirement.name, requirement.specifier, f"pip install '{text.partition(';')[0].strip()}'")
    for extra, texts in extras.items():
        for text in texts:
            requirement = Requirement(text)
            if requirement.name != PACKAGE:
                yield package(requirement.name, requirement.specifier, f"pip install '{PACKAGE}[{extra}]'", extra)


def package(name: str, allowed: object, cure: str, extra: str = "") -> Check:
    """Hold one package against a `SpecifierSet`; with `extra` it is optional."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    specifier, wanted = SpecifierSet(str(allowed)), not extra
    label = name if wanted else f"{name} [{extra}]"
    try:
        version = metadata.version(name)
        found = Version(version)
    except metadata.PackageNotFoundError:
        return Check("packages", label, "missing", "not installed", cure, wanted)
    except (InvalidVersion, TypeError) as error:
        return Check("packages", label, "broken", f"its version cannot be read: {error}", cure, wanted)
    if specifier.contains(found, prereleases=True):
        return Check("packages", label, "ok", version, needed=wanted)
    below = any(s.operator in (">=", ">", "~=", "==") and found < Version(s.version.rstrip(".*")) for s in specifier)
    why = "too old" if below else "newer than what was tried"
    return Check("packages", label, "broken", f"{version} is {why}: {specifier} is declared", cure, wanted)


def declared() -> tuple[str, list[str], dict[str, list[str]]]:
    """Return the range of Python, what is needed, and the extras by name, as the checkout or the wheel says."""
    for root in probe.__path__:
        path = Path(root, "pyproject.toml")
        if path.is_file():
            project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
            extras = {k: v for k, v in project["optional-dependencies"].items() if k not in NOT_LISTED}
            return project["requires-python"], project["dependencies"], extras
    from packaging.requirements import Requirement

    about = metadata.metadata(PACKAGE)
    names = [name for name in about.get_all("Provides-Extra") or [] if name not in NOT_LISTED]
    needed: list[str] = []
    by_extra: dict[str, list[str]] = {name: [] for name in names}
    for text in about.get_all("Requires-Dist") or []:
        marker = Requirement(text).marker
        of = [name for name in names if marker and "extra" in str(marker) and marker.evaluate({"extra": name})]
        for name in of:
            by_extra[name].append(text)
        if not of and (marker is None or "extra" not in str(marker)):
            needed.append(text)
    return about["Requires-Python"], needed, by_extra


def machine(folder: Path) -> Iterator[Check]:
    """Yield cores, memory and disk, and whether the folder's file system keeps what a run relies on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    chosen = os.environ.get("OMP_NUM_THREADS")
    yield Check("machine", "cores", "ok", f"{cores}" + (f", OMP_NUM_THREADS={chosen}" if chosen else ""))
    free = _free_memory()
    yield Check("machine", "memory", "ok", f"{free / 1e9:.1f} GB free" if free else "cannot be told here")
    room = shutil.disk_usage(folder).free
    small = room < LEAST_FREE_BYTES
    yield Check(
        "machine",
        "disk",
        "broken" if small else "ok",
        f"{room / 1e9:.1f} GB free here",
        "make room, or run in another folder (--out)" if small else "",
        needed=True,
    )
    yield file_system(folder)
    yield cache()
    with socket.socket() as asked:
        try:
            asked.bind(("127.0.0.1", PORT))
        except OSError as error:
            used = "in use" if error.errno == errno.EADDRINUSE else error.strerror
            yield Check(
                "machine", f"port {PORT}", "missing", f"{used}", "probe view RUN --port 0 takes one that is free"
            )
        else:
            yield Check("machine", f"port {PORT}", "ok", "free for the explorer")


def file_system(folder: Path) -> Check:
    """Try what a run relies on: data forced to disk, a file moved onto another, and a lock that keeps others out."""
    name, cure = "file system", "run in a folder on a local disk (--out)"
    try:
        with tempfile.TemporaryDirectory(prefix=".probe-doctor-", dir=folder) as made:
            old, new = Path(made, "old"), Path(made, "new")
            old.write_bytes(b"old")
            with new.open("wb") as file:
                file.write(b"new")
                file.flush()
                os.fsync(file.fileno())
            new.replace(old)
            if old.read_bytes() != b"new":
                return Check("machine", name, "broken", "a file that was moved is not there", cure, needed=True)
            if os.name == "nt":
                return Check("machine", name, "ok", "reading works; runs are not played on Windows")
            descriptor = os.open(made, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if not _locks(old):
                return Check("machine", name, "broken", "two processes can hold the same lock", cure, needed=True)
    except OSError as error:
        return Check("machine", name, "broken", f"{error.strerror or error}", cure, needed=True)
    return Check("machine", name, "ok", "forces data to disk, moves files whole, locks", needed=True)


def _locks(path: Path) -> bool:
    import fcntl

    with path.open() as first, path.open() as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def cache() -> Check:
    """Whether what is remembered of models can be written."""
    chosen = os.environ.get("PROBE_CACHE") or os.environ.get("XDG_CACHE_HOME")
    place = Path(chosen) if chosen else Path.home() / ".cache"
    while not place.exists() and place != place.parent:
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return Check("machine", "cache", "ok", "can be written")
    return Check("machine", "cache", "broken", "cannot be written: each model is checked anew", "set PROBE_CACHE")


def _free_memory() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def specimens() -> Iterator[Check]:
    """Yield whether each specimen's weights are those that its card is about (its `weights.sha256`)."""
    from probe.specimens import folders

    for name, folder in folders().items():
        wrong = damaged(folder)
        cure = f"pip install --force-reinstall --no-deps {PACKAGE}" if wrong else ""
        said = f"{', '.join(wrong)}: not what shipped" if wrong else "weights as they shipped"
        yield Check("specimens", name, "broken" if wrong else "ok", said, cure, needed=True)


def damaged(folder: Path) -> list[str]:
    """Return the files of a specimen that are not what its `weights.sha256` says, a line `digest  name` for each."""
    stated = folder / "weights.sha256"
    if not stated.is_file():
        return [stated.name]
    wrong = []
    for line in stated.read_text(encoding="ascii").splitlines():
        digest, name = line.split()
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(name)
    return wrong


def tools() -> Iterator[Check]:
    """Yield what helps beside the toolkit: a compiler, a browser for the tests, completion in the shell."""
    compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None)
    found = Path(compiler).name if compiler else "none; the scan on a CPU is slower, with the same numbers"
    yield Check("tools", "C++ compiler", "ok" if compiler else "missing", found, "" if compiler else "install g++")
    lacking = [tool for tool in ("chromium", "chromedriver") if not shutil.which(tool)]
    said = f"no {' and no '.join(lacking)}; only tests need them" if lacking else "for the tests of the explorer"
    yield Check(
        "tools",
        "chromium",
        "missing" if lacking else "ok",
        said,
        "apt-get install -y chromium chromium-driver" if lacking else "",
    )
    shell = Path(os.environ.get("SHELL", "")).name
    places = {
        "bash": ".bash_completions/probe.sh",
        "zsh": ".zfunc/_probe",
        "fish": ".config/fish/completions/probe.fish",
    }
    if shell in places:
        there = Path.home().joinpath(places[shell]).is_file()
        yield Check(
            "tools",
            "completion",
            "ok" if there else "missing",
            f"of {shell}" + ("" if there else ": not installed"),
            "" if there else "probe --install-completion",
        )

"""What becomes of a trace with one value changed and every hash made to fit: read in a process that may take little.

    python -m tests.security.trace_judge TRACE FIRST STOP ROOM

changes a copy of TRACE in the empty folder ROOM once for each seed, and prints as JSON how each ended.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import random
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import probe
from probe.errors import ProbeError
from probe.storage.commits import Commits
from probe.storage.durable import canonical_json

MOST_BYTES: Final = 512 * 2**20
"""Address space that a trace may add to the process that reads it."""
MOST_SECONDS: Final = 10.0
"""Processor time that reading one in every way may take."""

VALUES: list[Any] = [
    None, True, 0, -1, 1, 2, 10**12, 10**18, 2**63, -(2**63), 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "NaN", "-inf", "\x1b[2J\u202e</script>", "x" * 10_000_000, "é\U0001f600" * 10_000, "../x", "/etc/passwd", "\0",
    "\ud800",
    [], {}, [[]], [None], [1, 2, 3], [10**12, 10**12], [-1], ["x"] * 1000, {"a": 1}, {"withheld": 10**12},
    {"withheld": -1}, {"withheld": 2**24}, [["needle", 0, 10**12]], [["needle", 5, 1]], [[[], {}, None]], "float64",
    "object", "|O", "bool", "int64", "string", [{"name": "bytes"}], {"name": "numpy.datetime64"}, "group", 2, 3,
]  # fmt: skip
"""What is put in the place of a value."""


def unit_of(folder: Path) -> Path:
    return next(path for path in sorted((folder / "trace.zarr").iterdir()) if path.is_dir())


def resealed(folder: Path) -> None:
    """Make manifest and commit record agree with what a hostile hand put into the only unit."""
    unit = unit_of(folder)
    outside = ("manifest.json", ".probe-unit")
    paths = sorted(p for p in unit.rglob("*") if p.is_file() and p.name not in outside)
    listed = [[str(p.relative_to(unit)), p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()] for p in paths]
    data = canonical_json({"format": 2, "files": listed}).encode() + b"\n"
    (unit / "manifest.json").write_bytes(data)
    (folder / "commits.jsonl").unlink()
    Commits(folder / "commits.jsonl").append({"unit": unit.name, "manifest": hashlib.sha256(data).hexdigest()})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key in value if isinstance(value, dict) else range(min(3, len(value))) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def mutated(value: Any, rng: random.Random) -> Any:
    """Exchange a value or take one out, or put one in."""
    value = copy.deepcopy(value)
    path = rng.choice(list(places(value)))
    if not path:
        return rng.choice(VALUES)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    match rng.randrange(6):
        case 0:
            del holder[path[-1]]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("x", "_FillValue", "scale_factor", "units", "dtype", "labels", "__class__"))] = (
                rng.choice(VALUES)
            )
        case _:
            holder[path[-1]] = rng.choice(VALUES)
    return value


def changed(folder: Path, rng: random.Random) -> str:
    """Change one file of the unit, and say which."""
    unit = unit_of(folder)
    files = sorted(p for p in unit.rglob("*.json") if p.name != "manifest.json")
    important = [p for p in files if p.name in ("unit.json", "sample.json", "token_text.json") or p.parent == unit]
    file = rng.choice(important if rng.random() < 0.6 else files)
    value = mutated(json.loads(file.read_bytes()), rng)
    file.write_bytes(json.dumps(value).encode())
    resealed(folder)
    return f"{file.relative_to(unit)}: {str(value)[:80]!r}"


def read_all(folder: Path, out: Path) -> None:
    """Read a trace in every way that there is; raises as these do."""
    trace = probe.open(folder)
    asked: list[Callable[[], Any]] = [
        lambda: trace.sample,
        lambda: trace.token_text,
        lambda: trace.heads,
        lambda: trace.labels("span"),
        lambda: [
            trace.stored(name).read(*((0, size) for size in trace.stored(name).shape)) for name in trace.stored_names()
        ],
        lambda: [trace.dataset[name].load() for name in trace],
        lambda: [trace[name] for name in trace],
        lambda: repr(trace),
        trace._repr_html_,
        lambda: trace.window(0, 0, queries=slice(0, 8), keys=slice(0, 8)),
        lambda: trace.pyramid(0, 0, 0),
        lambda: trace.layer(0).load(),
        lambda: trace.select(layers=[0]),
        trace.verify,
        lambda: trace.export(out / "csv", "csv"),
        lambda: trace.export(out / "x.safetensors", "safetensors"),
        lambda: trace.export(out / "x.nc", "netcdf"),
        lambda: trace.save(out / "saved"),
        lambda: probe.attention_sinks(trace),
    ]
    refused: ProbeError | None = None
    for ask in asked:
        try:
            ask()
        except ProbeError as error:
            refused = error
        # Documented of `window`, `pyramid` and `select`: they name what there is.
        except IndexError as error:
            if not any(word in str(error) for word in ("positions", "layer", "head")):
                raise
    if refused is not None:
        raise refused


def judge(folder: Path, seeds: range, room: Path) -> tuple[Counter[str], list[str], int]:
    """Change a trace and read it, each seed in turn; return how often it was read or refused, what else, and memory."""
    ended: Counter[str] = Counter()
    wrong: list[str] = []
    (room / "out").mkdir(parents=True)
    # Whatever is loaded when something is first used is no matter of a hostile trace.
    read_all(folder, room / "out")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, size + MOST_BYTES))
    for seed in seeds:
        shutil.rmtree(room, ignore_errors=True)
        shutil.copytree(folder, room / "trace")
        (room / "out").mkdir()
        said = changed(room / "trace", random.Random(f"trace {seed}"))
        # What hangs ends the process by this signal, and nobody waits for it.
        print(f"seed {seed} ({said})", file=sys.stderr, flush=True)
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        try:
            read_all(room / "trace", room / "out")
            ended["read"] += 1
        except ProbeError:
            ended["refused"] += 1
        except BaseException as error:  # noqa: BLE001
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/probe/" in frame.filename]
            own = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
            wrong.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]} at {own[-3:]} ({said})")
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ended, wrong, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(judge(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])), Path(sys.argv[4]))))

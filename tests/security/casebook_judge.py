"""What becomes of one fuzzed casebook: read and built as `probe run` would, in a process that may take little."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tests.security.casebook_fuzz import casebook

MOST_BYTES: Final = 200 * 10**6
"""Address space that a casebook may add to the process that reads it."""
MOST_SECONDS: Final = 1.0
"""Processor time that a casebook may take."""
_ROOM: Final = 4096
"""Tokens of the longest prompt that is built here: how long building a longer one takes is no matter of hostility."""


class _ModelWouldBeLoaded(Exception):
    """The casebook is valid, as far as can be said without its model."""


class _TooSlow(BaseException):
    """Nothing between may take this for an error of the casebook."""


@dataclass
class Judged:
    """How many casebooks came to which end, and what went wrong."""

    ends: Counter[str] = field(default_factory=Counter)
    """`refused`, `built`, `cannot be built`, by number."""
    wrong: list[str] = field(default_factory=list)
    """Seeds of casebooks that ended otherwise, with what happened."""
    peak_bytes: int = 0
    """The most memory of the process beyond what it had before the first casebook."""
    slowest_seconds: float = 0.0
    """The most processor time that one took."""


def judged(seeds: range, folder: Path) -> Judged:
    """Judge casebooks in a process of its own, whose memory and time are limited; `folder` is empty and its own."""
    return begun(seeds, folder)()


def begun(seeds: range, folder: Path) -> Callable[[], Judged]:
    """Begin to judge casebooks in a process of its own, and return what waits for its end."""
    reader, writer = os.pipe()
    # Forked, so that the libraries are there already and what is measured is the casebooks.
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.close(reader)
            found = _judge(seeds, folder)
            with os.fdopen(writer, "w") as answer:
                json.dump([found.ends, found.wrong, found.peak_bytes, found.slowest_seconds], answer)
            code = 0
        except BaseException:  # noqa: BLE001
            (folder / "at").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    os.close(writer)

    def ended() -> Judged:
        with os.fdopen(reader) as answer:
            text = answer.read()
        _, status = os.waitpid(child, 0)
        if status or not text:
            said = (folder / "at").read_text() if (folder / "at").exists() else "nothing"
            return Judged(wrong=[f"{seeds}: the process ended with {status}, and said {said}"])
        ends, wrong, peak, slowest = json.loads(text)
        return Judged(Counter(ends), wrong, peak, slowest)

    return ended


def warm() -> Any:
    """Import all that reading a casebook may need and return the specimen's tokenizer, so that a fork has them."""
    import probe
    from probe import discovery

    for room in ("workloads", "hooks", "analyses", "kernels"):
        for name in discovery.names(room):
            discovery.get(room, name)
    global _tokenizer
    _tokenizer = probe.load("needle").tokenizer
    sys.stdin.close()
    return _tokenizer


_tokenizer: Any = None


def _judge(seeds: range, folder: Path) -> Judged:
    from probe import capture

    def load(*_: Any, **__: Any) -> Any:
        raise _ModelWouldBeLoaded

    capture.load = load
    os.chdir(folder)
    tokenizer, found = _tokenizer, Judged()
    signal.signal(signal.SIGPROF, _stop)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, size + MOST_BYTES))
    for seed in seeds:
        kind, text = casebook(seed)
        file = folder / "fuzzed.yaml"
        file.write_bytes(text)
        started = time.process_time()
        try:
            try:
                signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
                end = one(file, tokenizer)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except _TooSlow:
            end = None
            found.wrong.append(f"seed {seed} ({kind}): took more than {MOST_SECONDS} s")
        except BaseException as error:  # noqa: BLE001
            end = None
            found.wrong.append(f"seed {seed} ({kind}): {type(error).__name__}: {str(error)[:300]}")
        found.slowest_seconds = max(found.slowest_seconds, time.process_time() - started)
        if end is not None:
            found.ends[end] += 1
    found.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return found


def _stop(*_: Any) -> None:
    raise _TooSlow


def one(file: Path, tokenizer: Any) -> str:
    """Read a casebook as `probe run FILE` does, up to where its model would be loaded, then build its first prompt."""
    from probe import player
    from probe.errors import CasebookError, NotAvailable, UsageError

    read: list[Any] = []
    prepare = player.prepare
    try:
        player.prepare = lambda book, **options: read.append(book) or prepare(book, **options)
        player.run(file, out=file.parent / "run")
    except _ModelWouldBeLoaded:
        pass
    except CasebookError as error:
        said = str(error)
        if not re.match(rf"{re.escape(str(file))}:\d+:\d+: .", said):
            raise AssertionError(f"no line and column: {said!r}") from error
        if len(said) > 5_000:
            raise AssertionError(f"an error of {len(said)} characters") from error
        return "refused"
    finally:
        player.prepare = prepare
    workload = read[0].build_workload()
    if max(getattr(workload, "lengths", (0,))) > _ROOM:
        return "valid, and too long to be built here"
    try:
        for _ in islice(workload.build(tokenizer), 1):
            pass
    except (UsageError, NotAvailable):
        return "cannot be built"
    return "built"

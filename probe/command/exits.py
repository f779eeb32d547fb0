"""How the command line leaves: each error as one message with its exit code, no traceback for what was foreseen."""

from __future__ import annotations

import contextlib
import errno
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn, Protocol

import typer
from rich.console import Console
from rich.text import Text

import probe
from probe.command.watching import STOPS, watching
from probe.errors import DeviceLost, ProbeError, SomeUnitsFailed, StoppedByLimit, StoreCorrupt, StoreUnreachable
from probe.visible import visible


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGUSR2 arrived, its number the argument; what cleans up after Ctrl-C cleans up after this too."""


class _Counted(Protocol):
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    def stop(self) -> None: ...


@contextlib.contextmanager
def exits(*, debug: bool = False) -> Iterator[None]:
    """Turn an error into one message and an exit code: a ProbeError's own, 4 for a full disk, 70 for the rest."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except ProbeError as error:
        _leave(str(error), error.exit_code)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _leave(f"the disk is full: {error.filename or error}; what was written stays readable", 4)
        _unexpected(error, debug)
    # Whatever was not foreseen is ours to be told of, never a traceback in a user's face.
    except Exception as error:  # noqa: BLE001
        _unexpected(error, debug)


@contextlib.contextmanager
def stops(progress: _Counted, again: str | None, otherwise: str = "nothing was run") -> Iterator[None]:
    """Let Ctrl-C (exit 130), SIGTERM (143) and SIGUSR2 (140) stop a run where it is; print `again`, which goes on.

    It is None where nothing is run that could go on; then `otherwise` says what became of it. Within five seconds,
    whatever the run is at; a limit that a run has reached, and a device that is lost, say the command too.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    def told() -> str:
        if again is None:
            return f"stopped; {otherwise}"
        done = "nothing was read yet"
        if progress.total:
            done = f"{progress.done} of {progress.total} units are done and stay"
        return f"stopped; {done}. To go on:\n  {again}"

    handled = [number for number in STOPS if number != signal.SIGINT]
    previous = {number: signal.signal(number, terminate) for number in handled}
    try:
        with watching(lambda _: _say(told())):
            yield
    except KeyboardInterrupt as stop:
        progress.stop()
        _leave(told(), STOPS[stop.args[0] if isinstance(stop, Terminated) else signal.SIGINT])
    except (StoppedByLimit, DeviceLost, StoreUnreachable) as end:
        progress.stop()
        raise type(end)(f"{end}; {told()}") from end
    finally:
        progress.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def starts_over(again: str) -> Iterator[None]:
    """Say, where a run meets damage in its own folder, the command that starts it over."""
    try:
        yield
    except StoreCorrupt as error:
        from probe.storage.run_folder import UnreadableRecord

        # Whose record cannot be read may not be a run, and is not cleared.
        if isinstance(error, UnreadableRecord):
            raise
        raise StoreCorrupt(f"{error}\nTo start over, and read every unit again:\n  {again} --force") from error


def partial(num_failed: int, again: str, num_kept: int = 0) -> SomeUnitsFailed:
    """Return the error of a run that ended with failed units, of which `num_kept` are not tried again."""
    failed = "1 unit" if num_failed == 1 else f"{num_failed} units"
    said = f"{failed} failed; the report is partial."
    if num_kept:
        which = "It" if num_failed == num_kept == 1 else "They" if num_failed == num_kept else f"{num_kept} of them"
        said += f" {which} would fail again with the same model, and {'is' if num_kept == 1 else 'are'} not read again."
    if num_failed > num_kept:
        said += f" To try {'the others ' if num_kept else ''}again:\n  {again}"
    return SomeUnitsFailed(said)


def _leave(message: str, code: int) -> NoReturn:
    _say(message)
    raise typer.Exit(code)


def _say(message: str) -> None:
    line = Text("probe: ", style="bold red").append(visible(message, keep="\n"), style="default")
    Console(stderr=True).print(line, soft_wrap=True)


def _unexpected(error: Exception, debug: bool) -> NoReturn:
    message = f"an error of probe's own: {type(error).__name__}: {error}"
    if debug:
        traceback.print_exception(error)
        _leave(message, 70)
    with tempfile.NamedTemporaryFile("w", prefix="probe-error-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write(f"probe {probe.__version__}, Python {sys.version}\n{shlex.join(sys.argv)}\n\n")
        traceback.print_exception(error, file=file)
    _leave(f"{message}\nPlease report it, with {file.name}; `probe --debug …` shows the details at once.", 70)

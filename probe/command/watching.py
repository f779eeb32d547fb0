"""A stop that is honoured in time, even where Python does not come to it: inside one long call of a kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Final

GRACE_SECONDS: Final = 4.0
"""What a run has, from a signal on, to end by itself; the bar is five."""

STOPS: Final = {
    number: 128 + number
    for name in ("SIGINT", "SIGTERM", "SIGUSR2")
    if (number := getattr(signal, name, None)) is not None
}
"""Signals that stop a run, and the exit code of each; Slurm sends the third before the time is up, if told to."""


@contextlib.contextmanager
def watching(tell: Callable[[int], None], grace_seconds: float = GRACE_SECONDS) -> Iterator[None]:
    """Leave the process, however busy it is, once a signal that stops a run has not been honoured for so long.

    Python's own handlers run between two of its instructions; a call into a library may take minutes. The signal is
    seen by a thread of its own, which waits, calls `tell` with the exit code, and ends the process with it. What was
    committed stays, as after a `kill -9`. Nothing is watched outside of the main thread, where there are no handlers.
    """
    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield
        return
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    ended = threading.Event()

    def watch() -> None:
        while heard := ears.recv(64):
            for number in heard:
                if number in STOPS and not ended.wait(grace_seconds):
                    tell(STOPS[number])
                    os._exit(STOPS[number])
            if ended.is_set():
                return

    before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, name="probe-stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        mouth.close()
        thread.join()
        ears.close()

"""The process that has the model: requests come in as lines of JSON, what becomes of them goes out as lines of JSON.

First line in: `{"model": …, "options": {…}}`; then `{"number": …, "sample": …, "what_if": {…}}`. Lines out
have an `event`: `loading`, `ready`, `unavailable`, `reading`, `done`, `refused`. When its input ends, as it does when
the explorer ends in whatever way, the process removes the folder that it wrote to and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from probe.errors import ProbeError
from probe.what_if import WhatIf

# torch is imported when the model is loaded: the end of the input is to be heard from the start.


def main() -> None:
    """Read from standard input until it ends."""
    # What libraries print is not to stand between our lines.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        said: queue.SimpleQueue[str] = queue.SimpleQueue()
        room = Path(os.environ["PROBE_LIVE_ROOM"])
        threading.Thread(target=_listen, args=(sys.stdin, said, room), daemon=True).start()
        try:
            _serve(json.loads(said.get()), room, said, out)
        except (OSError, ValueError):
            # Nobody hears any more: whoever listens for the end of the input removes the folder and ends the process.
            threading.Event().wait()


def _serve(asked: dict[str, Any], room: Path, said: queue.SimpleQueue[str], out: TextIO) -> None:
    def tell(event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}, allow_nan=False), file=out, flush=True)

    tell("loading")
    try:
        from probe.live.reading import LiveReader

        reader = LiveReader(asked["model"], asked["options"], room / "what-if")
    # Whatever keeps a model from being loaded is to be said where the prompt was typed.
    except Exception as error:  # noqa: BLE001
        tell("unavailable", words=_words(error))
        return
    tell("ready", **reader.facts())
    while True:
        request = json.loads(said.get())
        number = request["number"]
        try:
            what_if = WhatIf.from_json(request["what_if"])
            found = reader.read(
                what_if, request["sample"], lambda n=number, **facts: tell("reading", number=n, **facts)
            )
        # Memory, an odd shape: one request fails, and the next one is read.
        except Exception as error:  # noqa: BLE001
            tell("refused", number=number, words=_words(error), memory=reader.memory_bytes())
        else:
            tell("done", number=number, memory=reader.memory_bytes(), **found)


def _listen(source: TextIO, said: queue.SimpleQueue[str], room: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in source:
            said.put(line)
    # What is being written meanwhile may be in the way of the first attempt.
    for _ in range(10):
        shutil.rmtree(room, ignore_errors=True)
        if not room.exists():
            break
    os._exit(0)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {error}"[:1000]


if __name__ == "__main__":
    main()

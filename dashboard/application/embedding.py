"""The explorer inside of another process, such as a notebook's kernel: one server for each folder, while that lives."""

from __future__ import annotations

import atexit
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from werkzeug.serving import BaseWSGIServer

from probe.dashboard.application.address import read_address, write_address
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.page import pages
from probe.dashboard.application.serving import bound
from probe.errors import UsageError
from probe.storage.object_path import Location
from probe.storage.trace_store import Run, Trace

HOST: Final = "127.0.0.1"

_lock: Final = threading.Lock()
_servers: Final[dict[Location, BaseWSGIServer]] = {}
_saved: Final[WeakKeyDictionary[Trace, tempfile.TemporaryDirectory[str]]] = WeakKeyDictionary()
_folders: Final[list[tempfile.TemporaryDirectory[str]]] = []


def address_of(source: Run | Trace, page: str, parts: Mapping[str, str]) -> str:
    """Return where a page shows a run or a trace, `parts` being those of its address; "" is the first page.

    A thread of this process serves the folder on a free port of this machine, to this machine alone, until the process
    ends. A trace in memory is saved to a temporary folder first. Raises UsageError naming the pages that there are, or
    what the page does not have.
    """
    made = pages()
    name = page or next(iter(made))
    if name not in made:
        raise UsageError(f"there is no page {page!r}; there are {', '.join(made)}")
    with _lock:
        folder = _folder(source)
    shown = made[name](Opened([folder]))
    # Held against what there is: a wrong layer is said here, not in a frame.
    view = read_address(write_address(parts, shown.controls), shown.controls)
    shown.completed(view)
    with _lock:
        server = _servers.get(folder) or _serve(folder)
    return f"http://{HOST}:{server.port}/{name}{write_address(view, shown.controls)}"


def _folder(source: Run | Trace) -> Location:
    if isinstance(source, Run):
        return source.path.resolve()
    if source.folder is not None:
        return source.folder.resolve()
    if source not in _saved:
        kept = tempfile.TemporaryDirectory(prefix="probe-view-")
        source.save(Path(kept.name) / "trace")
        _saved[source] = kept
        # What is shown stays there, whatever becomes of the trace in the notebook.
        _folders.append(kept)
    return Path(_saved[source].name, "trace").resolve()


def _serve(folder: Location) -> BaseWSGIServer:
    server = bound(folder, host=HOST, port=0, embedded=True)
    _servers[folder] = server
    threading.Thread(target=server.serve_forever, name=f"explorer of {folder.name}", daemon=True).start()
    return server


@atexit.register
def stop() -> None:
    """Stop every server, and remove what was saved for them; the next view starts anew."""
    with _lock:
        for server in _servers.values():
            server.shutdown()
            server.server_close()
        for folder in _folders:
            folder.cleanup()
        _servers.clear()
        _folders.clear()
        _saved.clear()

"""Serves the explorer at one address until it is stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from werkzeug.serving import BaseWSGIServer, make_server

from probe.dashboard.application.explorer import explorer
from probe.dashboard.live.session import Live
from probe.errors import UsageError
from probe.storage.object_path import Location


def bound(
    path: Location | str | Sequence[Location | str],
    *,
    host: str,
    port: int,
    token: str | None = None,
    embedded: bool = False,
    live: Live | None = None,
) -> BaseWSGIServer:
    """Return a server that listens, its port in `.port`; port 0 takes any that is free.

    No environment variable has a say in it, and nothing of it can be debugged. Raises UsageError where the address
    cannot be had, and as `explorer` does.
    """
    app = explorer(path, host=host, token=token, embedded=embedded, live=live)
    app.enable_dev_tools(
        debug=False,
        dev_tools_ui=False,
        dev_tools_props_check=False,
        dev_tools_serve_dev_bundles=False,
        dev_tools_hot_reload=False,
        dev_tools_silence_routes_logging=True,
        dev_tools_disable_version_check=True,
        dev_tools_prune_errors=True,
        dev_tools_validate_callbacks=False,
    )
    # Every request would print a line.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    try:
        return make_server(host, port, app.server, threaded=True)
    # werkzeug leaves with SystemExit where a port is taken, having printed why.
    except (OSError, SystemExit) as error:
        raise UsageError(f"cannot listen at {host}, port {port}: it is taken, or no address of this machine") from error


def serve(server: BaseWSGIServer, ready: Callable[[], None]) -> None:
    """Answer until Ctrl-C; `ready` is called once, when the first request can come."""
    try:
        ready()
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()

"""Who may ask the explorer for anything: this machine's own browser, at this address, from this page."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from flask import Flask, Response, abort, redirect, request

from probe.errors import UsageError

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
"""Addresses that no other machine can reach."""

_COOKIE: Final = "probe_token"


def check_address(host: str, token: str | None) -> None:
    """Raise UsageError for an address that others can reach without a token, and for one that stands for all."""
    if host in LOOPBACK:
        return
    try:
        every = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        every = host == ""
    if every:
        raise UsageError(
            f"{host!r} stands for every address of this machine; name the one that the browser is to ask for"
        )
    if not token:
        raise UsageError(f"{host!r} can be reached from elsewhere, and is not served without a token")


def guard(server: Flask, host: str, token: str | None, script_hashes: Sequence[str], *, embedded: bool = False) -> None:
    """Let a server answer its own address alone.

    A foreign Host gets 400, a foreign Origin 403. With a token, whoever has not brought it in the address once gets
    403. `embedded` lets pages of this machine show it in a frame; no other page ever may. Raises UsageError as
    `check_address` does.
    """
    check_address(host, token)
    server.config["TRUSTED_HOSTS"] = sorted({host, *(LOOPBACK if host in LOOPBACK else ())} - {"::1"})
    if host == "::1":
        server.config["TRUSTED_HOSTS"].append("[::1]")

    def check() -> Response | None:
        # Asking for the host is what holds it against the list.
        own = request.host
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != own:
            abort(403)
        if request.headers.get("Sec-Fetch-Site") == "cross-site" and request.method != "GET":
            abort(403)
        return None if token is None else _check_token(token)

    # Before Dash's own, which would answer first.
    server.before_request_funcs.setdefault(None, []).insert(0, check)

    def headers(response: Response) -> Response:
        scripts = " ".join(["'self'", *script_hashes])
        frames = " ".join(f"http://{name}:*" for name in ("localhost", "127.0.0.1")) if embedded else "'none'"
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
            f"font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {frames}"
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    server.after_request(headers)


def _check_token(token: str) -> Response | None:
    given = request.args.get("token")
    if given is not None and hmac.compare_digest(given.encode(), token.encode()):
        # From here on a cookie carries it, so that it is in no address that is passed on.
        answer = redirect(request.path)
        answer.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
        return answer  # type: ignore[return-value]
    if not hmac.compare_digest(request.cookies.get(_COOKIE, "").encode(), token.encode()):
        abort(403)
    return None

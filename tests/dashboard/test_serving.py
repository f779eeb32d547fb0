"""The explorer answers this machine's own browser at its own address, and nobody else."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from probe.dashboard.application.explorer import explorer
from probe.dashboard.application.page import Page, pages
from probe.dashboard.application.serving import bound
from probe.errors import NotAvailable, UsageError


@pytest.fixture(scope="module")
def client(small: Any) -> Any:
    return explorer(small.path).server.test_client()


def get(client: Any, host: str = "127.0.0.1:8050", path: str = "/", **headers: str) -> int:
    return int(client.get(path, base_url=f"http://{host}", headers=headers).status_code)


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost:8050"])
def test_its_own_address_is_answered(client: Any, host: str) -> None:
    assert get(client, host) == 200


@pytest.mark.parametrize("path", ["/", "/_dash-layout", "/_dash-dependencies", "/assets/attention.js"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8050", "127.0.0.1.evil.example", "0.0.0.0:8050"])
def test_a_foreign_host_gets_400(client: Any, host: str, path: str) -> None:
    assert get(client, host, path) == 400


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8050"])
def test_a_foreign_origin_gets_403(client: Any, origin: str) -> None:
    headers = {"Origin": origin}
    done = client.post("/_dash-update-component", base_url="http://127.0.0.1:8050", headers=headers, json={})
    assert done.status_code == 403


def test_its_own_page_may_call_back(client: Any) -> None:
    body = {
        "output": "page.children",
        "outputs": {"id": "page", "property": "children"},
        "inputs": [{"id": "place", "property": "pathname", "value": "/"}],
        "changedPropIds": ["place.pathname"],
    }
    headers = {"Origin": "http://127.0.0.1:8050"}
    done = client.post("/_dash-update-component", base_url="http://127.0.0.1:8050", headers=headers, json=body)
    assert done.status_code == 200
    assert b"overview-content" in done.data


def test_nothing_is_loaded_from_elsewhere(client: Any) -> None:
    page = client.get("/", base_url="http://127.0.0.1:8050")
    text = page.text
    assert 'src="http' not in text
    assert 'href="http' not in text
    assert 'src="//' not in text
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    scripts = next(part for part in policy.split(";") if "script-src" in part)
    assert "unsafe" not in scripts


@pytest.mark.parametrize("host", ["192.0.2.7", "example.org", "10.0.0.1"])
def test_another_address_needs_a_token(small: Any, host: str) -> None:
    with pytest.raises(UsageError, match="without a token"):
        explorer(small.path, host=host)
    client = explorer(small.path, host=host, token="s3cret").server.test_client()
    assert get(client, f"{host}:8050") == 403
    assert get(client, f"{host}:8050", "/_dash-layout") == 403
    assert get(client, f"{host}:8050", "/?token=wrong") == 403
    assert get(client, "127.0.0.1:8050", "/?token=s3cret") == 400
    entered = client.get("/?token=s3cret", base_url=f"http://{host}:8050")
    assert entered.status_code == 302
    assert "token" not in entered.headers["Location"]
    assert "HttpOnly" in entered.headers["Set-Cookie"]
    assert get(client, f"{host}:8050") == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_an_address_that_stands_for_all_is_refused(small: Any, host: str) -> None:
    with pytest.raises(UsageError, match="every address"):
        explorer(small.path, host=host, token="s3cret")


def test_the_environment_has_no_say(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HOST": "0.0.0.0", "PORT": "1", "DASH_DEBUG": "1", "DASH_UI": "1", "FLASK_DEBUG": "1", "DASH_HOT_RELOAD": "1",
        "DASH_URL_BASE_PATHNAME": "/elsewhere/", "DASH_ENABLE_MCP": "1", "DASH_PROXY": "http://0.0.0.0::http://x",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    server = bound(small.path, host="127.0.0.1", port=0)
    try:
        assert server.server_address[0] == "127.0.0.1"
        assert server.port != 1
        client = server.app.test_client()  # type: ignore[attr-defined]
        assert get(client) == 200
        assert get(client, path="/_reload-hash") == 404 or b"hot" not in client.get("/").data
        assert b'"hot_reload"' not in client.get("/", base_url="http://127.0.0.1:8050").data
        assert b'"ui":true' not in client.get("/", base_url="http://127.0.0.1:8050").data.replace(b" ", b"")
    finally:
        server.server_close()


def test_a_port_that_is_taken_is_said(small: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="it is taken"):
            bound(small.path, host="127.0.0.1", port=taken.getsockname()[1])


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable):
        explorer(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="neither a run nor a trace"):
        explorer(tmp_path)


def test_pages_are_the_files_of_the_folder() -> None:
    found = pages()
    assert "attention" in found
    assert all(issubclass(page, Page) and page.title for page in found.values())


def test_a_page_that_is_not_there_is_said(client: Any) -> None:
    body = {
        "output": "page.children",
        "outputs": {"id": "page", "property": "children"},
        "inputs": [{"id": "place", "property": "pathname", "value": "/<script>"}],
        "changedPropIds": ["place.pathname"],
    }
    done = client.post("/_dash-update-component", base_url="http://127.0.0.1:8050", json=body)
    assert "There is no page" in done.text

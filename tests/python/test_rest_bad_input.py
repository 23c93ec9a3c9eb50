"""Bad input over raw HTTP and at the start: each gives an error that says what, and leaves nothing."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox

from conftest import BIN, Minio, Server

CREATES = ["/sandboxes", "/v2/sandboxes"]


@pytest.fixture
def api(poolless_server: Server) -> Iterator[httpx.Client]:
    """A client whose test must leave the engine as it was."""
    before = set(poolless_server.containers())
    with poolless_server.http() as client:
        yield client
    assert set(poolless_server.containers()) == before


def refused(answer: httpx.Response, status: int, *parts: str) -> str:
    """Checks an error body (control-plane 2.1) and that its message holds every part."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["code"] == status and type(body["code"]) is int
    assert isinstance(body["message"], str)
    for part in parts:
        assert part in body["message"], body["message"]
    return body["message"]


# ---- create -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CREATES)
def test_unknown_template(api: httpx.Client, path: str) -> None:
    refused(api.post(path, json={"templateID": "no-such"}), 404, "template 'no-such' not found")


@pytest.mark.parametrize("session", ["../x", "", "x" * 200, "sitzung-ü", "a/b", ".hidden", "a..b", "a\n", " a"])
def test_bad_session_id(api: httpx.Client, session: str) -> None:
    body = {"templateID": "base", "metadata": {"session": session}}
    refused(api.post("/v2/sandboxes", json=body), 400, "session")


@pytest.mark.parametrize("path", CREATES)
@pytest.mark.parametrize("timeout", [0, -1, 24 * 3600 + 1, 2**31, "60", 1.5])
def test_bad_timeout(api: httpx.Client, path: str, timeout: Any) -> None:
    refused(api.post(path, json={"templateID": "base", "timeout": timeout}), 400, "timeout")


@pytest.mark.parametrize(
    "body", [{}, {"templateID": 7}, {"templateID": None}, [], "base", {"templateID": "base", "metadata": {"a": 1}}]
)
def test_bodies_of_the_wrong_form(api: httpx.Client, body: Any) -> None:
    refused(api.post("/v2/sandboxes", json=body), 400, "validation error")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b'{"templateID":"base"', b"nonsense"])
def test_malformed_json(api: httpx.Client, content: bytes) -> None:
    answer = api.post("/v2/sandboxes", content=content, headers={"Content-Type": "application/json"})
    refused(answer, 400)


def test_wrong_content_type(api: httpx.Client) -> None:
    answer = api.post("/v2/sandboxes", content=b"templateID=base", headers={"Content-Type": "text/plain"})
    assert answer.status_code in (400, 415), answer.text
    refused(answer, answer.status_code)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_50_mb(api: httpx.Client, chunked: bool) -> None:
    piece = b"x" * 1_000_000
    pieces = [b'{"templateID":"base","metadata":{"a":"', *[piece] * 50, b'"}}']
    content: Any = iter(pieces) if chunked else b"".join(pieces)
    try:
        answer = api.post("/v2/sandboxes", content=content, headers={"Content-Type": "application/json"})
    except httpx.WriteError:
        return  # the server closed the connection before it had read everything: that is a refusal too
    assert answer.status_code in (400, 413)
    refused(answer, answer.status_code)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", {"denyOut": ["0.0.0.0/0"]}),
        ("allow_internet_access", False),
        ("volumeMounts", [{"name": "v", "path": "/v"}]),
    ],
)
def test_what_is_not_built_is_refused_by_name(api: httpx.Client, field: str, value: Any) -> None:
    answer = api.post("/v2/sandboxes", json={"templateID": "base", field: value})
    assert answer.status_code in (400, 501)
    refused(answer, answer.status_code, field)


def test_defaults_and_unknown_fields_pass(server: Server) -> None:
    body = {
        "templateID": "base",
        "timeout": 60,
        "secure": True,
        "allow_internet_access": True,
        "autoPause": False,
        "autoResume": {"enabled": False},
        "metadata": {},
        "envVars": {},
        "network": {},
        "volumeMounts": [],
        "mcp": None,
        "somethingNew": {"a": [1]},
    }
    with server.http() as client:
        for path in CREATES:
            answer = client.post(path, json=body)
            assert answer.status_code == 201, answer.text
            sandbox = answer.json()
            required = {"templateID", "sandboxID", "clientID", "envdVersion", "envdAccessToken", "domain"}
            assert required <= sandbox.keys() and sandbox["domain"]
            assert client.delete(f"/sandboxes/{sandbox['sandboxID']}").status_code == 204


# ---- everything else ----------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "e2b_" + "0" * 40}, {"X-API-Key": "nonsense"}])
def test_without_a_valid_key_nothing_works(server: Server, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=server.api_url, headers=headers) as client:
        assert client.get("/health").status_code == 200
        # Credentials come before the body, the handler and the id.
        for method, path in [("GET", "/v2/sandboxes"), ("POST", "/v2/sandboxes"), ("DELETE", "/sandboxes/inone")]:
            refused(client.request(method, path, content=b"{"), 401)


def test_routes_that_are_not_built_are_named(api: httpx.Client) -> None:
    refused(api.get("/v2/templates"), 501, "GET", "/v2/templates")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "nextToken=garbage", "order=up", "metadata=a"])
def test_bad_queries(api: httpx.Client, query: str) -> None:
    refused(api.get(f"/v2/sandboxes?{query}"), 400)


def test_bad_sandbox_ids(api: httpx.Client) -> None:
    refused(api.get("/sandboxes/inothere"), 404)
    refused(api.get("/sandboxes/A%2Fb"), 400, "Invalid sandbox ID")
    refused(api.get("/sandboxes/a-b-c"), 400, "Invalid sandbox ID")


def test_timeouts_of_a_living_sandbox(server: Server, sandbox: Sandbox) -> None:
    path = f"/sandboxes/{sandbox.sandbox_id}"
    with server.http() as client:
        refused(client.post(f"{path}/timeout", json={"timeout": -1}), 400, "timeout")
        refused(client.post(f"{path}/timeout", json={}), 400, "timeout")
        refused(client.post(f"/v2{path}/connect", json={"timeout": 72 * 3600}), 400, "timeout")
        refused(client.post("/v2/sandboxes/inone/connect", json={"timeout": 72 * 3600}), 400, "timeout")
        refused(client.post(f"{path}/refreshes", json={"duration": 3601}), 400, "duration")
        long = client.post(f"{path}/timeout", json={"timeout": 10**6})  # clamped, not refused
        assert (long.status_code, long.content) == (204, b"")
        with_suffix = client.get(f"{path}-6532622b")
        assert with_suffix.status_code == 200


def test_bodies_of_the_proxy(server: Server, sandbox: Sandbox) -> None:
    with httpx.Client(base_url=server.sandbox_url) as client:

        def ask(path: str, sandbox_id: str, port: str) -> httpx.Response:
            return client.get(path, headers={"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": port})

        unknown = ask("/", "inothere", "8000")
        assert unknown.status_code == 502
        assert unknown.json() == {"message": "The sandbox was not found", "sandboxId": "inothere", "code": 502}
        closed = ask("/", sandbox.sandbox_id, "8123")
        assert closed.status_code == 502
        message = "The sandbox is running but port is not open"
        assert closed.json() == {"message": message, "sandboxId": sandbox.sandbox_id, "port": 8123, "code": 502}
        assert ask("/init", sandbox.sandbox_id, "49983").status_code == 404
        assert ask("/", sandbox.sandbox_id, "x").status_code == 400
        # init's own port is nobody's business.
        assert ask("/", sandbox.sandbox_id, "49982").status_code in (403, 404, 502)
        assert client.get("/", headers={"E2b-Sandbox-Id": sandbox.sandbox_id}).status_code == 400
        assert client.get("/", headers={"Host": f"8000-{'A!'}.sbx.localhost"}).status_code == 400


# ---- the engine, the image, the store -----------------------------------------------------


def start_fails(data_dir: Path, *arguments: str, **settings: str) -> str:
    """Starts a server that cannot work; returns what it says."""
    defaults = [f"--{name}-listen=127.0.0.1:0" for name in ("api", "proxy", "gateway")]
    given = {argument.split("=")[0] for argument in arguments}
    listeners = [default for default in defaults if default.split("=")[0] not in given]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SANDYARD_", "E2B_"))}
    done = subprocess.run(
        [BIN / "sandyard", "up", "--data-dir", data_dir, *listeners, *arguments],
        env=clean | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "panicked" not in done.stderr
    assert not (data_dir / "server.json").exists()
    return done.stderr


def test_no_engine(folder: Path) -> None:
    said = start_fails(folder, SANDYARD_DOCKER__HOST="unix:///nonexistent/docker.sock")
    assert "/nonexistent/docker.sock" in said


def test_port_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = start_fails(folder, f"--api-listen=127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in said and "in use" in said


def test_bad_configuration_is_reported_at_once_and_whole(folder: Path) -> None:
    file = folder / "sandyard.toml"
    file.write_text('nonsense = 1\n[api]\nlisten = "here"\n[limits]\nmax_sandboxes = 0\n')
    said = start_fails(folder / "data", f"--config={file}", SANDYARD_LOG__FORMAT="xml")
    for part in ["nonsense", "limits.max_sandboxes", "log.format"]:
        assert part in said, said


def test_image_missing(own_server: Callable[..., Server], folder: Path) -> None:
    file = folder / "sandyard.toml"
    file.write_text('[[templates]]\nname = "odd"\nimage = "no-such/image:1"\n')
    server = own_server(f"--config={file}")
    with server.http() as client:
        message = refused_any(client.post("/v2/sandboxes", json={"templateID": "odd"}))
    assert "no-such/image:1" in message
    assert not server.containers()


def refused_any(answer: httpx.Response) -> str:
    assert answer.status_code >= 400, answer.text
    return refused(answer, answer.status_code)


def create_with_workspace(server: Server) -> httpx.Response:
    with server.http() as client:
        return client.post("/v2/sandboxes", json={"templateID": "base", "metadata": {"session": "bad-store"}})


def test_store_gone_at_create(own_server: Callable[..., Server], minio: Minio) -> None:
    server = own_server(**minio.settings())
    minio.stop()
    answer = create_with_workspace(server)
    assert answer.elapsed.total_seconds() < 15
    assert minio.endpoint in refused_any(answer)
    assert not server.containers()
    # The store plays no part in a sandbox without a workspace.
    sandbox = server.create()
    assert sandbox.commands.run("echo fine").stdout == "fine\n"
    assert sandbox.kill()


def test_store_refuses_the_keys(own_server: Callable[..., Server], minio: Minio) -> None:
    server = own_server(**minio.settings() | {"SANDYARD_STORE__SECRET_ACCESS_KEY": "wrong-secret"})
    answer = create_with_workspace(server)
    assert answer.elapsed.total_seconds() < 15
    assert "key" in refused_any(answer).lower()
    assert not server.containers()

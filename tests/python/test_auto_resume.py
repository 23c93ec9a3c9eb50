"""Requests that wake paused sandboxes, and those that must not (control-plane 3.4, 5.6, 5.7)."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import Server, until
from e2b import Sandbox, SandboxState
from lifecycle import Rest, ask, serve_counter

WAKES = {"autoPause": True, "autoResume": {"enabled": True}}
NOT_FOUND = "The sandbox was not found"


def minutes(rest: Rest, sandbox: str) -> int:
    begun, end = rest.times(sandbox)
    assert (datetime.datetime.now(datetime.timezone.utc) - begun).total_seconds() < 10, "the start was not set anew"
    return round((end - begun).total_seconds())


def envd(rest: Rest, sandbox: str, path: str = "/files?path=/etc/hostname", token: str | None = None) -> httpx.Response:
    headers = {"E2b-Sandbox-Id": sandbox, "E2b-Sandbox-Port": "49983"}
    if token is not None:
        headers["X-Access-Token"] = token
    return httpx.get(f"{rest.server.sandbox_url}{path}", headers=headers, timeout=60)


def test_a_command_of_the_sdk_wakes_it(server: Server) -> None:
    sandbox = server.create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    try:
        sandbox.commands.run("sleep 1000", background=True, timeout=0)
        pids = [p.pid for p in sandbox.commands.list()]
        assert sandbox.pause()
        assert sandbox.commands.run("echo awake").stdout == "awake\n"
        assert sandbox.get_info().state == SandboxState.RUNNING
        assert sandbox.pause()
        assert [p.pid for p in sandbox.commands.list()] == pids
        assert sandbox.pause()
        sandbox.files.write("a", "written while it was paused")
        assert sandbox.files.read("a") == "written while it was paused"
        # A health check is a request like others.
        assert sandbox.pause() and sandbox.is_running()
    finally:
        sandbox.kill()


def test_a_request_to_a_port_wakes_it_and_is_answered(rest: Rest, server: Server) -> None:
    sandbox = rest.create(**WAKES)
    pid = serve_counter(rest.sdk(sandbox))
    for count in (1, 2, 3):
        rest.does("pause", sandbox, 204)
        answer = ask(server, sandbox)
        assert (answer.status_code, answer.text) == (200, f"{count} {pid}")
        assert rest.state(sandbox) == "running"
    rest.does("pause", sandbox, 204)
    answer = httpx.post(server.sandbox_url, content=b"x" * 3_000_000, timeout=60,
                        headers={"Host": f"8000-{sandbox}.sbx.localhost"})
    assert (answer.status_code, answer.text) == (200, f"4 {pid} 3000000")


def test_after_a_timeout_too(rest: Rest, server: Server) -> None:
    sandbox = rest.create(**WAKES)
    pid = serve_counter(rest.sdk(sandbox))
    rest.does("timeout", sandbox, 204, body={"timeout": 0})
    until("it is paused", lambda: rest.state(sandbox) == "paused", 10)
    assert ask(server, sandbox).text == f"1 {pid}"


def test_requests_at_once_wake_it_once(rest: Rest, server: Server) -> None:
    sandbox = rest.create(**WAKES)
    pid = serve_counter(rest.sdk(sandbox))
    for _ in range(3):
        rest.does("pause", sandbox, 204)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: ask(server, sandbox), range(8)))
        assert [(a.status_code, a.text.split()[1]) for a in answers] == [(200, str(pid))] * 8


@pytest.mark.parametrize(("created", "expected"), [(None, 300), (60, 300), (420, 420)])
def test_the_new_time_is_the_creates(rest: Rest, created: int | None, expected: int) -> None:
    """At least 300 s, and whatever was set later plays no part."""
    body = {"templateID": "base", **WAKES} | ({} if created is None else {"timeout": created})
    sandbox = rest.http.post("/v2/sandboxes", json=body).json()["sandboxID"]
    rest.made.append(sandbox)
    client = rest.sdk(sandbox)
    rest.does("timeout", sandbox, 204, body={"timeout": 600})
    rest.does("pause", sandbox, 204)
    assert client.commands.run("echo on").stdout == "on\n"
    assert minutes(rest, sandbox) == expected


def test_not_without_auto_resume(rest: Rest, server: Server) -> None:
    for body in ({}, {"autoPause": True}, {"autoPause": True, "autoResume": {"enabled": False}}):
        made = rest.created(**body)
        sandbox = made["sandboxID"]
        serve_counter(rest.sdk(sandbox))
        rest.does("pause", sandbox, 204)
        for answer in (ask(server, sandbox), envd(rest, sandbox, token=made["envdAccessToken"]),
                       envd(rest, sandbox, "/health", token=made["envdAccessToken"])):
            assert (answer.status_code, answer.json()) == (
                502, {"message": NOT_FOUND, "sandboxId": sandbox, "code": 502})
        page = ask(server, sandbox, **{"User-Agent": "Mozilla/5.0"})
        assert page.status_code == 502 and "Sandbox Not Found" in page.text and page.text.endswith("</html>")
        assert rest.state(sandbox) == "paused"


def test_not_without_memory(rest: Rest, server: Server) -> None:
    made = rest.created(**WAKES)
    sandbox = made["sandboxID"]
    rest.does("pause", sandbox, 204, body={"memory": False})
    for answer in (ask(server, sandbox), envd(rest, sandbox, token=made["envdAccessToken"])):
        assert (answer.status_code, answer.json()["message"]) == (502, NOT_FOUND)
    assert rest.state(sandbox) == "paused"
    # And again with it after the next pause.
    rest.does("connect", sandbox, 201)
    rest.does("pause", sandbox, 204)
    assert envd(rest, sandbox, token=made["envdAccessToken"]).status_code == 200


def test_not_by_a_stranger_at_the_sdks_port(rest: Rest) -> None:
    """Secured: the access token is looked at before anything wakes."""
    made = rest.created(**WAKES)
    sandbox = made["sandboxID"]
    rest.does("pause", sandbox, 204)
    for token in (None, "wrong", ""):
        answer = envd(rest, sandbox, token=token)
        assert answer.status_code == 403, answer.text
        assert answer.json()["sandboxId"] == sandbox and answer.json()["code"] == 403
        assert rest.state(sandbox) == "paused"
    assert envd(rest, sandbox, token=made["envdAccessToken"]).status_code == 200
    assert rest.state(sandbox) == "running"


def test_not_by_a_stranger_at_a_private_port(rest: Rest, server: Server) -> None:
    """control-plane 8.20"""
    made = rest.created(**WAKES, network={"allowPublicTraffic": False})
    sandbox, token = made["sandboxID"], made["trafficAccessToken"]
    pid = serve_counter(rest.sdk(sandbox))
    rest.does("pause", sandbox, 204)
    for headers, message in [
            ({}, "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"),
            ({"e2b-traffic-access-token": "wrong"}, "Sandbox is secured with traffic access token. Provided token in "
                                                    "header 'e2b-traffic-access-token' is invalid")]:
        answer = ask(server, sandbox, **headers)
        assert answer.status_code == 403, answer.text
        assert answer.json() == {"message": message, "sandboxId": sandbox, "code": 403}
        assert rest.state(sandbox) == "paused"
    woken = ask(server, sandbox, **{"e2b-traffic-access-token": token})
    assert (woken.status_code, woken.text) == (200, f"1 {pid}")
    # The SDK's port has a token of its own and needs no other (control-plane 8.19).
    rest.does("pause", sandbox, 204)
    assert envd(rest, sandbox, token=made["envdAccessToken"]).status_code == 200


def test_a_signed_url_wakes_it(server: Server) -> None:
    """It carries its credentials (control-plane 5.4)."""
    sandbox = server.create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    try:
        sandbox.files.write("signed.txt", "signed")
        url = sandbox.download_url("signed.txt")
        assert sandbox.pause()
        assert httpx.get(url, timeout=60).text == "signed"
    finally:
        sandbox.kill()


def test_at_the_teams_limit(own_server: Callable[..., Server]) -> None:
    """429, as a create of one too many; paused ones do not count (control-plane 3.3, 5.6)."""
    server = own_server(SANDYARD_LIMITS__MAX_SANDBOXES="1")
    rest = Rest(server)
    made = rest.created(**WAKES)
    sandbox = made["sandboxID"]
    pid = serve_counter(rest.sdk(sandbox))
    rest.does("pause", sandbox, 204)
    other = rest.create()
    one_too_many = rest.http.post("/v2/sandboxes", json={"templateID": "base"})
    assert one_too_many.status_code == 429
    rest.does("connect", sandbox, 429)
    rest.does("resume", sandbox, 429)
    for answer in (ask(server, sandbox), envd(rest, sandbox, token=made["envdAccessToken"])):
        assert answer.status_code == 429, answer.text
        assert answer.json()["sandboxId"] == sandbox and answer.json()["code"] == 429
    assert rest.state(sandbox) == "paused"
    rest.does("kill", other, 204)
    assert ask(server, sandbox).text == f"1 {pid}"
    rest.close()


@pytest.mark.parametrize("kind", ["unknown", "killed", "killed while paused"])
def test_what_is_gone_stays_gone(rest: Rest, server: Server, kind: str) -> None:
    sandbox = "inothere000000000000" if kind == "unknown" else rest.create(**WAKES)
    if kind == "killed while paused":
        rest.does("pause", sandbox, 204)
    if kind != "unknown":
        rest.does("kill", sandbox, 204)
    assert ask(server, sandbox).json() == {"message": NOT_FOUND, "sandboxId": sandbox, "code": 502}


def test_a_client_that_stays_through_it(server: Server) -> None:
    """An object from before the pause, its pooled connections included, goes on without anybody calling connect."""
    sandbox = server.create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    try:
        for n in range(5):
            assert Sandbox.pause(sandbox.sandbox_id, **server.options())
            assert sandbox.commands.run(f"echo {n} >> turns; wc -l < turns").stdout == f"{n + 1}\n"
    finally:
        sandbox.kill()

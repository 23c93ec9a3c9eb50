"""Forks: copies of a running sandbox, each with an identity of its own (control-plane 3.5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Server, docker, until
from e2b import Sandbox
from e2b.exceptions import InvalidArgumentException, SandboxException, SandboxNotFoundException
from lifecycle import STARTED, Rest, ask, in_parallel, seconds_left, serve_counter


def fork(rest: Rest, sandbox: str, **body: object) -> list[dict[str, object]]:
    entries = rest.does("fork", sandbox, 201, body=body).json()
    assert all("sandbox" in entry for entry in entries), entries
    return [entry["sandbox"] for entry in entries]


def test_of_one_that_serves_http(rest: Rest, server: Server) -> None:
    """The source serves on; each copy has its files and answers for itself."""
    sandbox = rest.create(timeout=600, metadata={"a": "b"}, envVars={"FROM_CREATE": "yes"}, autoPause=True)
    client = rest.sdk(sandbox)
    client.files.write("kept.txt", "kept")
    pid = serve_counter(client)
    assert ask(server, sandbox).text == f"1 {pid}"
    before, boot = rest.detail(sandbox), client.commands.run(STARTED).stdout
    copies = fork(rest, sandbox, count=3, timeout=300)
    assert rest.detail(sandbox) == before
    assert ask(server, sandbox).text == f"2 {pid}"
    assert len({made["sandboxID"] for made in copies} | {sandbox}) == 4
    assert len({made["envdAccessToken"] for made in copies} | {before["envdAccessToken"]}) == 4
    for number, made in enumerate(copies):
        copy = made["sandboxID"]
        shown = rest.detail(copy)
        for same in ("templateID", "alias", "metadata", "lifecycle"):
            assert shown.get(same) == before.get(same), same
        assert abs(seconds_left(rest, copy) - 300) < 20
        copied = rest.sdk(copy)
        assert copied.files.read("kept.txt") == "kept"
        assert copied.commands.run("echo $FROM_CREATE $E2B_SANDBOX_ID").stdout == f"yes {copy}\n"
        assert copied.commands.run(STARTED).stdout != boot
        # Its own server, found at its own name.
        copied.files.write("counter.py", client.files.read("counter.py"))
        own = serve_counter(copied)
        assert ask(server, copy).text == f"1 {own}"
        copied.files.write("only", str(number))
    assert [rest.sdk(made["sandboxID"]).files.read("only") for made in copies] == ["0", "1", "2"]
    assert not client.files.exists("only")
    rest.does("kill", sandbox, 204)
    assert rest.sdk(copies[0]["sandboxID"]).files.read("kept.txt") == "kept"


def test_the_defaults_are_one_of_15_s(rest: Rest) -> None:
    sandbox = rest.create()
    for body in ({}, None):
        answer = rest.http.post(f"/sandboxes/{sandbox}/fork", json=body) if body is not None else rest.http.post(
            f"/sandboxes/{sandbox}/fork")
        assert answer.status_code == 201, answer.text
        [entry] = answer.json()
        copy = entry["sandbox"]["sandboxID"]
        rest.made.append(copy)
        begun, end = rest.times(copy)
        assert (end - begun).total_seconds() == pytest.approx(15, abs=1)


def test_a_fork_pauses_resumes_and_is_forked_itself(rest: Rest) -> None:
    sandbox = rest.create()
    rest.sdk(sandbox).files.write("kept.txt", "kept")
    [copy] = fork(rest, sandbox, timeout=300)
    for memory in (True, False):
        rest.does("pause", copy["sandboxID"], 204, body={"memory": memory})
        rest.does("connect", copy["sandboxID"], 201)
    [second] = fork(rest, copy["sandboxID"], timeout=300)
    rest.does("kill", copy["sandboxID"], 204)
    assert rest.sdk(second["sandboxID"]).files.read("kept.txt") == "kept"


def test_the_saved_image_goes_with_its_last_user(own_server: Callable[..., Server]) -> None:
    """design 5.1: nothing is left of a fork once source and copies are gone; and it is no snapshot anybody lists."""
    server = own_server()
    rest = Rest(server)
    before = images()
    sandbox = rest.create()
    copies = fork(rest, sandbox, count=2, timeout=300)
    assert rest.http.get("/snapshots").json() == []
    rest.does("kill", sandbox, 204)
    for made in copies:
        rest.does("kill", made["sandboxID"], 204)
    until("no image is left", lambda: images() <= before)
    rest.close()


def images() -> set[str]:
    return set(docker("images", "-aq", "--no-trunc").split())


def test_with_a_workspace(rest: Rest, server: Server) -> None:
    """A workspace is in the store, not in the copy: each sees the session's files."""
    sandbox = rest.create(metadata={"session": "forked"})
    client = rest.sdk(sandbox)
    client.files.write("/workspace/shared.txt", "in the store")
    client.files.write("local.txt", "on the disk")
    [copy] = fork(rest, sandbox, timeout=300)
    copied = rest.sdk(copy["sandboxID"])
    assert copied.files.read("/workspace/shared.txt") == "in the store"
    assert copied.files.read("local.txt") == "on the disk"
    copied.files.write("/workspace/theirs.txt", "from the copy")
    until("the source sees it", lambda: client.commands.run("cat /workspace/theirs.txt || true").stdout
          == "from the copy", 15)


def test_the_sdks_calls(server: Server) -> None:
    sandbox = server.create()
    copies: list[Sandbox] = []
    try:
        sandbox.files.write("kept.txt", "sdk")
        copies += sandbox.fork(timeout=120, count=2)
        copies += Sandbox.fork(sandbox.sandbox_id, timeout=120, **server.options())
        assert all(isinstance(copy, Sandbox) for copy in copies), copies
        assert [copy.files.read("kept.txt") for copy in copies] == ["sdk"] * 3
        assert sandbox.commands.run("echo on").stdout == "on\n"
        with pytest.raises(InvalidArgumentException):
            sandbox.fork(count=21)
        assert sandbox.pause()
        with pytest.raises(SandboxException, match="409"):
            sandbox.fork()
    finally:
        for copy in copies:
            assert copy.kill()
        sandbox.kill()
    with pytest.raises(SandboxNotFoundException):
        sandbox.fork()


@pytest.mark.parametrize("body", [
    {"count": 0}, {"count": 101}, {"count": -1}, {"count": "2"}, {"count": 1.5}, {"timeout": 0}, {"timeout": -1},
    {"timeout": "x"}, {"timeout": 72 * 3600}, []])
def test_bad_bodies(counted: Rest, body: object) -> None:
    sandbox = counted.create()
    before = counted.server.containers()
    message = counted.does("fork", sandbox, 400, body=body).json()["message"]
    if isinstance(body, dict):
        assert next(iter(body)) in message, message
    assert counted.state(sandbox) == "running" and counted.server.containers() == before


def test_more_than_the_team_may_have(own_server: Callable[..., Server]) -> None:
    """As many as the limit or more are refused whole; what fits not beside others says so for itself."""
    server = own_server(SANDYARD_LIMITS__MAX_SANDBOXES="3")
    rest = Rest(server)
    sandbox = rest.create()
    for count in (3, 4, 100):
        rest.does("fork", sandbox, 400, body={"count": count})
    assert len(fork(rest, sandbox, count=2, timeout=300)) == 2
    answer = rest.call("fork", sandbox, {"count": 2})
    if answer.status_code == 201:
        assert [entry["error"]["code"] for entry in answer.json()] == [429, 429]
    else:
        assert answer.status_code in (400, 429), answer.text
    assert len(rest.listed()) == 3 and rest.state(sandbox) == "running"
    rest.close()


def test_two_forks_at_once(rest: Rest) -> None:
    """One saves at a time (control-plane 3.2): the other is told so, or waits its turn; none fails otherwise."""
    sandbox = rest.create()
    statuses = [a.status_code for a in in_parallel(3, lambda: rest.call("fork", sandbox))]
    assert set(statuses) <= {201, 409} and 201 in statuses
    assert rest.state(sandbox) == "running"

"""Bad input and bad luck over a sandbox's whole life: the contract's code, a text that says what to do, and nothing
left (issue 10, 7). Unknown and foreign ids are in test_lifecycle_table.py, snapshot names in test_snapshots.py, fork
counts in test_fork.py."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from conftest import Server, docker, until
from lifecycle import OPERATIONS, HeldEngine, Rest, ask, serve_counter

CREATES = pytest.mark.parametrize("path", ["/sandboxes", "/v2/sandboxes"])


@CREATES
@pytest.mark.parametrize(("body", "named"), [
    ({"autoPauseMemory": False}, "autoPause"),
    ({"autoPauseMemory": False, "autoPause": False}, "autoPause"),
    ({"autoPauseMemory": False, "autoPause": True, "autoResume": {"enabled": True}}, "autoResume"),
    ({"autoPause": "yes"}, "autoPause"), ({"autoResume": True}, "autoResume"), ({"autoResume": {}}, "enabled"),
    ({"autoResume": {"enabled": "yes"}}, "enabled"), ({"mcp": "x"}, "mcp")])
def test_creates_that_contradict_themselves(
        counted: Rest, path: str, body: dict[str, object], named: str) -> None:
    before = set(counted.server.containers())
    answer = counted.http.post(path, json={"templateID": "base", **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == 400 and named in answer.json()["message"], answer.text
    assert set(counted.server.containers()) <= before


@CREATES
def test_mcp_is_accepted(rest: Rest, path: str) -> None:
    """The SDK starts the gateway itself; the member only tells (control-plane 3.3)."""
    for mcp in ({"browserbase": {"apiKey": "k"}}, {"github/owner/repo": {"runCmd": "x", "envs": {"A": "b"}}}, {}, None):
        answer = rest.http.post(path, json={"templateID": "base", "mcp": mcp, "secure": True})
        assert answer.status_code == 201, answer.text
        rest.made.append(answer.json()["sandboxID"])


@pytest.mark.parametrize(("operation", "content", "status"), [
    ("pause", '{"memory": "yes"}', 400), ("pause", "[]", 400), ("pause", "{", 400), ("pause", '{"memory": null}', 204),
    ("pause", '{"unknown": 1}', 204), ("pause", '{"memory": true, "requireHealthyGuest": false}', 204),
    ("pause", "", 204), ("resume", '{"timeout": 0}', 400), ("resume", '{"timeout": -1}', 400),
    ("resume", '{"timeout": "x"}', 400), ("resume", '{"autoPause": "x"}', 400), ("resume", "", 201),
    ("resume", '{"timeout": 1000000}', 400), ("connect", '{"timeout": -1}', 400), ("connect", '{"memory": "x"}', 400),
    ("connect", "", 201), ("connect v1", "{}", 400), ("connect v1", "", 400), ("refreshes", '{"duration": -1}', 400),
    ("refreshes", '{"duration": 3601}', 400), ("timeout", '{"timeout": null}', 400), ("timeout", "", 400)])
def test_bodies(rest: Rest, operation: str, content: str, status: int) -> None:
    sandbox = rest.create()
    before = "paused" if operation in ("resume", "connect", "connect v1") else "running"
    if before == "paused":
        rest.does("pause", sandbox, 204)
    method, path, _ = OPERATIONS[operation]
    url = path.format(id=sandbox)
    answer = rest.http.request(method, url, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    if status == 400:
        assert answer.json()["code"] == 400 and len(answer.json()["message"]) > 10
        assert rest.state(sandbox) == before


def test_chunked_bodies_and_none(rest: Rest) -> None:
    """control-plane 3.4, G10: a body may be absent, empty, or come without its length."""
    sandbox = rest.create()
    pause, connect = f"/sandboxes/{sandbox}/pause", f"/v2/sandboxes/{sandbox}/connect"
    json = {"Content-Type": "application/json"}
    for body in (None, b"", iter([b""]), iter([b'{"mem', b'ory": true}'])):
        assert rest.http.post(pause, content=body, headers=json).status_code == 204
        assert rest.http.post(connect, content=iter([b"{", b"}"]), headers=json).status_code == 201
    assert rest.http.post(pause).status_code == 204
    assert rest.http.post(connect).status_code == 201


def test_what_it_says_when_it_cannot(rest: Rest) -> None:
    sandbox = rest.create()
    running = rest.does("resume", sandbox, 409).json()["message"]
    assert "already running" in running and sandbox in running
    rest.does("pause", sandbox, 204)
    paused = rest.does("pause", sandbox, 409).json()["message"]
    assert "paused" in paused and sandbox in paused
    for operation in ("timeout", "refreshes", "snapshot"):
        assert "paused" in rest.does(operation, sandbox, 404).json()["message"], operation
    assert "paused" in rest.does("fork", sandbox, 409).json()["message"]
    rest.does("kill", sandbox, 204)
    for operation in ("pause", "resume", "connect", "timeout", "fork", "snapshot", "kill"):
        message = rest.does(operation, sandbox, 404).json()["message"]
        assert sandbox in message, (operation, message)


# ---- a container that somebody removed or stopped by hand -------------------------------------


@pytest.mark.parametrize("memory", [True, False], ids=["memory kept", "file system only"])
@pytest.mark.parametrize("operation", ["connect", "resume", "kill", "get"])
def test_a_paused_ones_container_was_removed(rest: Rest, server: Server, operation: str, memory: bool) -> None:
    sandbox = rest.create()
    container = server.container(sandbox)
    rest.does("pause", sandbox, 204, body={"memory": memory})
    docker("rm", "--force", container)
    if operation == "kill":
        # Nothing is left to kill, or its record was: both are the truth.
        rest.does("kill", sandbox, 204, 404)
    elif operation == "get":
        until("it is gone for everybody", lambda: rest.state(sandbox) == "gone", 10)
    else:
        answer = rest.call(operation, sandbox)
        assert answer.status_code in (404, 409, 500, 503), answer.text
        assert sandbox in answer.json()["message"], answer.text
    rest.call("kill", sandbox)
    assert rest.state(sandbox) == "gone"
    rest.does("connect", sandbox, 404)
    assert sandbox not in {s["sandboxID"] for s in rest.listed()}
    assert container not in server.containers()


def test_a_frozen_container_that_was_killed_by_hand_has_its_files(rest: Rest, server: Server) -> None:
    """design 5.1: frozen memory is gone with the engine or host; what is left counts as paused without memory."""
    sandbox = rest.create()
    client = rest.sdk(sandbox)
    client.files.write("kept.txt", "kept")
    serve_counter(client)
    container = server.container(sandbox)
    rest.does("pause", sandbox, 204)
    docker("kill", container)
    until("its memory is known to be gone", lambda: rest.detail(sandbox).get("pauseMode") == "filesystem", 10)
    assert rest.state(sandbox) == "paused"
    rest.does("connect", sandbox, 201)
    again = rest.sdk(sandbox)
    assert again.files.read("kept.txt") == "kept" and again.commands.list() == []


def test_one_that_somebody_let_go_on_by_hand(rest: Rest, server: Server) -> None:
    """`docker unpause`: it runs, but it is paused for its client until that says otherwise."""
    sandbox = rest.create()
    pid = serve_counter(rest.sdk(sandbox))
    container = server.container(sandbox)
    rest.does("pause", sandbox, 204)
    docker("unpause", container)
    assert rest.state(sandbox) == "paused"
    rest.does("connect", sandbox, 201)
    assert ask(server, sandbox).text == f"1 {pid}"


def test_one_that_somebody_started_by_hand(rest: Rest, server: Server) -> None:
    sandbox = rest.create()
    rest.sdk(sandbox).files.write("kept.txt", "kept")
    container = server.container(sandbox)
    rest.does("pause", sandbox, 204, body={"memory": False})
    docker("start", container)
    rest.does("connect", sandbox, 201)
    assert rest.sdk(sandbox).files.read("kept.txt") == "kept"


# ---- an engine that cannot ---------------------------------------------------------------------


@pytest.fixture
def held(held_engine: HeldEngine) -> Iterator[Rest]:
    made = Rest(held_engine.server)
    yield made
    made.close()
    until("nothing is left", lambda: held_engine.server.containers() == [])


def images() -> set[str]:
    return set(docker("images", "-aq", "--no-trunc").split())


@pytest.mark.parametrize("operation", ["snapshot", "fork"])
@pytest.mark.parametrize("fault", ["disk full", "engine gone", "broken off"])
def test_a_commit_that_fails(held_engine: HeldEngine, held: Rest, operation: str, fault: str) -> None:
    """503 or 500 with the reason; the source runs on, and what was begun is not left."""
    sandbox = held.create()
    pid = serve_counter(held.sdk(sandbox))
    before = images()
    commit = r"^POST [^ ]*/commit\?"
    if fault == "disk full":
        reason = "write /var/lib/docker/overlay2/x: no space left on device"
        rule = held_engine.engine.refuse(commit, "500 Internal Server Error", reason)
    elif fault == "engine gone":
        reason = "engine"
        rule = held_engine.engine.refuse(commit, "503 Service Unavailable", "the engine is shutting down")
    else:
        # The connection ends without an answer: an engine that died.
        reason = "engine"
        rule = held_engine.engine.refuse(commit, "", "")
        rule.answer = b"HTTP/1.1 "
    answer = held.call(operation, sandbox)
    assert rule.fired.is_set()
    if operation == "fork" and answer.status_code == 201:
        errors = [entry["error"] for entry in answer.json()]
        assert errors and all(error["code"] >= 500 for error in errors), answer.text
        text = errors[0]["message"]
    else:
        assert answer.status_code in (500, 503), answer.text
        text = answer.json()["message"]
    assert reason.lower() in text.lower(), text
    assert held.state(sandbox) == "running"
    assert ask(held_engine.server, sandbox).text == f"1 {pid}"
    assert held.listed()[0]["sandboxID"] == sandbox and len(held.listed()) == 1
    assert held.http.get("/snapshots", params={"sandboxID": sandbox}).json() == []
    until("no image is left", lambda: images() <= before)
    # And the next one works.
    held.does(operation, sandbox, 201)


@pytest.mark.parametrize("memory", [True, False], ids=["memory kept", "file system only"])
def test_a_pause_that_the_engine_refuses(held_engine: HeldEngine, held: Rest, memory: bool) -> None:
    sandbox = held.create()
    pid = serve_counter(held.sdk(sandbox))
    container = held_engine.server.container(sandbox)
    verb = "pause" if memory else "(stop|kill)"
    rule = held_engine.engine.refuse(
        rf"^POST [^ ]*/containers/{container}/{verb}\b", "500 Internal Server Error", "cannot freeze: no such cgroup")
    answer = held.call("pause", sandbox, {"memory": memory})
    if not rule.fired.is_set():
        # Another way to end it than by the engine: nothing to refuse.
        assert answer.status_code == 204 and not memory
        return
    assert answer.status_code in (500, 503), answer.text
    assert "no such cgroup" in answer.json()["message"]
    assert held.state(sandbox) == "running"
    assert ask(held_engine.server, sandbox).text == f"1 {pid}"
    held.does("pause", sandbox, 204, body={"memory": memory})
    held.does("connect", sandbox, 201)


@pytest.mark.parametrize("memory", [True, False], ids=["memory kept", "file system only"])
def test_a_resume_that_the_engine_refuses(held_engine: HeldEngine, held: Rest, memory: bool) -> None:
    """It stays paused, loses nothing, and the next try works."""
    sandbox = held.create()
    client = held.sdk(sandbox)
    client.files.write("kept.txt", "kept")
    container = held_engine.server.container(sandbox)
    held.does("pause", sandbox, 204, body={"memory": memory})
    verb = "unpause" if memory else "start"
    rule = held_engine.engine.refuse(
        rf"^POST [^ ]*/containers/{container}/{verb}\b", "500 Internal Server Error", "cannot start: out of things")
    answer = held.call("connect", sandbox)
    assert rule.fired.is_set() and answer.status_code in (500, 503), answer.text
    assert "out of things" in answer.json()["message"]
    assert held.state(sandbox) == "paused"
    held.does("connect", sandbox, 201)
    assert client.files.read("kept.txt") == "kept"


def test_a_snapshot_deleted_while_a_sandbox_starts_from_it(held_engine: HeldEngine, held: Rest) -> None:
    source = held.create()
    held.sdk(source).files.write("version", "1")
    snapshot = held.does("snapshot", source, 201).json()["snapshotID"]
    path = f"/templates/{re.sub(':.*', '', snapshot)}"
    with held_engine.hold(r"^POST [^ ]*/containers/create") as create:
        starting = held_engine.begin(
            lambda: held.http.post("/v2/sandboxes", json={"templateID": snapshot, "timeout": 300}))
        create.reached(starting)
        deleting = held_engine.begin(lambda: held.http.delete(path))
        held.does("get", source, 200)
    deleted = deleting.result(60)
    # 400: it is in use already.
    assert deleted.status_code in (204, 400), deleted.text
    started = starting.result(60)
    if started.status_code == 201:
        sandbox = started.json()["sandboxID"]
        held.made.append(sandbox)
        assert held.sdk(sandbox).files.read("version") == "1"
    else:
        assert (deleted.status_code, started.status_code) == (204, 404), started.text
        assert "not found" in started.json()["message"]
    if deleted.status_code == 400:
        held.does("kill", sandbox, 204)
        assert held.http.delete(path).status_code == 204
    answer: httpx.Response = held.http.post("/v2/sandboxes", json={"templateID": snapshot})
    assert answer.status_code == 404

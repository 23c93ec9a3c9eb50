"""The server is killed with SIGKILL at named points of a pause, a resume, a snapshot, a fork and a claim, on the real
engine: after the next start the sandbox is in a state of the table, it works, no byte is missing and nothing leaks
(issue 10, 5)."""

from __future__ import annotations

import pathlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import Server, docker, until
from e2b import Sandbox
from engine_proxy import EngineProxy
from lifecycle import Rest, serve_counter
from pool import filled, shelves

PAUSE, UNPAUSE = r"^POST [^ ]*/containers/{}/pause", r"^POST [^ ]*/containers/{}/unpause"
STOP, START = r"^(POST [^ ]*/containers/{0}/(stop|kill))", r"^POST [^ ]*/containers/{}/start"
COMMIT, CREATE = r"^POST [^ ]*/commit\?", r"^POST [^ ]*/containers/create"
REMOVE = r"^DELETE [^ ]*/containers/{}"

# What is called, on a sandbox in which state, and at which call to the engine the server dies: before the engine sees it,
# or after it has answered.
POINTS = {
    f"{name}, {'before' if before else 'after'}": (operation, state, pattern, before)
    for name, operation, state, pattern in [
        ("pause, at the freeze", ("pause", {}), "running", PAUSE),
        ("pause of the file system, at the stop", ("pause", {"memory": False}), "running", STOP),
        ("resume, at the thaw", ("connect", {}), "paused", UNPAUSE),
        ("resume of the file system, at the start", ("connect", {}), "filesystem", START),
        ("snapshot, at the freeze", ("snapshot", {}), "running", PAUSE),
        ("snapshot, at the commit", ("snapshot", {"name": "crash"}), "running", COMMIT),
        ("snapshot, at the thaw", ("snapshot", {}), "running", UNPAUSE),
        ("fork, at the commit", ("fork", {"count": 2}), "running", COMMIT),
        ("fork, at a create", ("fork", {"count": 2}), "running", CREATE),
        ("kill of a paused one, at the removal", ("kill", None), "paused", REMOVE),
    ]
    for before in (True, False)
}


@pytest.fixture
def proxy(folder: pathlib.Path) -> Iterator[EngineProxy]:
    made = EngineProxy(folder / "engine.sock")
    yield made
    made.close()


@pytest.fixture
def server(proxy: EngineProxy, own_server: Callable[..., Server]) -> Server:
    started = own_server(SANDYARD_DOCKER__HOST=proxy.host)
    # The executor's volume is filled by the first create.
    started.create().kill()
    return started


def images() -> set[str]:
    return set(docker("images", "-aq", "--no-trunc").split())


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(server: Server, proxy: EngineProxy, point: str) -> None:
    (operation, body), state, pattern, before = POINTS[point]
    # As a raw client: nothing tries again.
    rest, images_before = Rest(server), images()
    session = uuid.uuid4().hex
    sandbox = rest.create(metadata={"session": session}, timeout=3600)
    client = rest.sdk(sandbox)
    container = server.container(sandbox)
    client.files.write("kept.txt", "on the disk")
    client.files.write("/workspace/kept.txt", "in the store")
    pid = serve_counter(client)
    if state != "running":
        rest.does("pause", sandbox, 204, body={"memory": state == "paused"})
    rule = proxy.at(pattern.format(container), server.kill9, before=before)
    with pytest.raises((httpx.TransportError, OSError)):
        rest.call(operation, sandbox, body)
    assert rule.fired.is_set()
    server.start()
    rest = Rest(server)
    if operation == "kill":
        until("the kill is finished", lambda: rest.state(sandbox) == "gone")
    else:
        # A state that lasts; a transition that was begun is finished or taken back.
        until("it is in a state that lasts", lambda: rest.state(sandbox) == "running" or (
            rest.state(sandbox) == "paused" and "pauseMode" in rest.detail(sandbox)))
        # Both, in whichever order, work from there.
        if rest.state(sandbox) == "running":
            rest.does("pause", sandbox, 204)
        rest.does("connect", sandbox, 201)
        client = rest.sdk(sandbox)
        assert client.files.read("kept.txt") == "on the disk"
        assert client.files.read("/workspace/kept.txt") == "in the store"
        client.files.write("/workspace/after.txt", "after")
        if state != "filesystem" and body != {"memory": False}:
            # The memory was never given up.
            assert pid in {process.pid for process in client.commands.list()}
        others = [s["sandboxID"] for s in rest.listed() if s["sandboxID"] != sandbox]
        # Nobody was told of a fork's copies.
        assert others == []
        rest.does("kill", sandbox, 204)
    until("no container is left", lambda: server.containers() == [])
    for snapshot in rest.http.get("/snapshots").json():
        # One that was finished is a whole one.
        with Sandbox.create(snapshot["snapshotID"], **server.options()) as copy:
            assert copy.files.read("kept.txt") == "on the disk"
        assert Sandbox.delete_snapshot(snapshot["snapshotID"], **server.options())
    until("no image is left", lambda: images() <= images_before)
    stored = server.s3().get_object(Bucket=server.variables["SANDYARD_S3_BUCKET"], Key=f"sessions/{session}/kept.txt")
    assert stored["Body"].read() == b"in the store"
    rest.close()


def test_killed_while_a_create_claims_from_the_pool(own_server: Callable[..., Server]) -> None:
    """The create was cut off at some moment of its claim, in 8 tries at 8 moments: none is left half claimed."""
    server = own_server(SANDYARD_POOL__MAX="10")
    for n in range(8):
        with server.http() as api:
            call = api.build_request("POST", "/v2/sandboxes", json={"templateID": "base", "metadata": {"n": str(n)}})
            # The server reads it and begins; it dies n ms later.
            timer = threading.Timer(n / 250, server.kill9)
            timer.start()
            answered = None
            try:
                answered = api.send(call)
            except httpx.TransportError:
                timer.join()
            timer.join()
        server.start()
        rest = Rest(server)
        known = {s["sandboxID"] for s in rest.listed()}
        if answered is not None and answered.status_code == 201:
            # What was answered for lives on.
            assert answered.json()["sandboxID"] in known
        for sandbox in known:
            assert rest.sdk(sandbox).commands.run("echo on").stdout == "on\n"
            rest.does("kill", sandbox, 204)
        rest.close()
    with server.create() as sandbox:
        assert sandbox.commands.run("echo on").stdout == "on\n"


@pytest.mark.parametrize("workspace", [False, True], ids=["plain", "workspace"])
def test_killed_between_a_claim_and_its_answer(own_server: Callable[..., Server], workspace: bool) -> None:
    """The create has taken a container from the pool and tells it; the container hears of it when the server is dead."""
    server = own_server(SANDYARD_POOL__MAX="2", SANDYARD_BASE__POOL="1")
    waiting = filled(server)
    kind = ("base", "workspace" if workspace else "plain")
    assert len(waiting) == 2 and kind in shelves(server), shelves(server)
    for container in waiting:
        docker("pause", container)
    body = {"templateID": "base", "metadata": {"session": "claimed"} if workspace else {}}
    with server.http() as api, ThreadPoolExecutor(1) as threads:
        call = threads.submit(api.post, "/v2/sandboxes", json=body)
        until("a container is taken", lambda: shelves(server)[kind][0] == 0)
        server.kill9()
        with pytest.raises(httpx.TransportError):
            call.result(30)
    for container in waiting:
        docker("unpause", container)
    server.start()
    rest = Rest(server)
    assert rest.listed() == []
    # The one that was told of a sandbox that nobody knows is given to nobody.
    until("there is the pool and nothing else", lambda: len(filled(server)) == 2 == len(server.containers()))
    with server.create(metadata={"session": "claimed"}) as sandbox:
        assert sandbox.commands.run("echo on").stdout == "on\n"
    rest.close()

"""The server is killed with SIGKILL at named points of a create and of a kill, on the real engine, and
started again: nothing is left that should not be, and what was answered for lives on."""

from __future__ import annotations

import pathlib
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest
from conftest import Server, docker, until
from e2b import Sandbox
from engine_proxy import EngineProxy

SESSION = {"session": "crash"}


@pytest.fixture
def proxy(folder: pathlib.Path) -> Iterator[EngineProxy]:
    made = EngineProxy(folder / "engine.sock")
    yield made
    made.close()


@pytest.fixture
def server(proxy: EngineProxy, own_server: Callable[..., Server]) -> Server:
    started = own_server(SANDYARD_DOCKER__HOST=proxy.host)
    # The executor's volume is filled by the first create: none of the points below is about that.
    started.create().kill()
    return started


def cut_off(call: Callable[[], object]) -> None:
    """Runs a call whose server dies under it."""
    with pytest.raises((httpx.TransportError, OSError)):
        call()


def post_create(server: Server) -> httpx.Response:
    body = {"templateID": "base", "metadata": SESSION, "timeout": 600}
    with server.http() as api:
        return api.post("/v2/sandboxes", json=body)


# Named by what the engine has seen, and whether it has answered.
CREATE_POINTS = {
    "before the container is created": (r"^POST .*/containers/create", True),
    "after the container is created": (r"^POST .*/containers/create", False),
    "before the container is started": (r"^POST .*/containers/sandyard-\w+/start", True),
    "after the container is started": (r"^POST .*/containers/sandyard-\w+/start", False),
    # The next thing after this answer is the claim: mounts and identity.
    "when the claim begins": (r"^GET .*/containers/sandyard-\w+/json", False),
}


@pytest.mark.parametrize("point", CREATE_POINTS)
def test_killed_during_a_create(server: Server, proxy: EngineProxy, point: str) -> None:
    pattern, before = CREATE_POINTS[point]
    rule = proxy.at(pattern, server.kill9, before=before)
    cut_off(lambda: post_create(server))
    assert rule.fired.is_set()
    server.start()
    assert Sandbox.list(**server.options()).next_items() == []
    # Beside the start, which one that cannot be removed must not keep from serving.
    until("no container is left", lambda: server.containers() == [])
    until("no volume is left", lambda: server.volumes() == [])
    # And it works again, with the same session.
    sandbox = server.create(metadata=SESSION)
    assert sandbox.commands.run("ls /workspace").stdout == "artifacts\nuploads\n"
    sandbox.kill()


@pytest.mark.parametrize("before", [True, False], ids=["before the removal", "after the removal"])
def test_killed_during_a_kill(server: Server, proxy: EngineProxy, before: bool) -> None:
    sandbox = server.create(metadata=SESSION)
    sandbox.files.write("/workspace/kept.txt", "kept")
    rule = proxy.at(rf"^DELETE .*/containers/{server.container(sandbox)}", server.kill9, before=before)
    cut_off(sandbox_kill(server, sandbox))
    assert rule.fired.is_set()
    server.start()
    until("the container is gone", lambda: server.containers() == [])
    # A kill joins the one that the start goes on with; then there is nothing to kill.
    until("it is unknown", lambda: not Sandbox.kill(sandbox.sandbox_id, **server.options()))
    kept = server.s3().get_object(Bucket="sandyard", Key="sessions/crash/kept.txt")
    assert kept["Body"].read() == b"kept"


def sandbox_kill(server: Server, sandbox: Sandbox) -> Callable[[], object]:
    def kill() -> object:
        with server.http() as api:
            return api.delete(f"/sandboxes/{sandbox.sandbox_id}")

    return kill


def test_killed_while_sandboxes_run(server: Server) -> None:
    """They run on, writes wait for the gateway, and the next server has them all."""
    sandbox = server.create(metadata=SESSION)
    plain = server.create()
    handle = plain.commands.run("sleep 1000", background=True, timeout=0)
    server.kill9()
    server.start()
    options = server.options()
    again = Sandbox.connect(sandbox.sandbox_id, **options)
    again.files.write("/workspace/after.txt", "after")
    stored = server.s3().get_object(Bucket="sandyard", Key="sessions/crash/after.txt")
    assert stored["Body"].read() == b"after"
    plain_again = Sandbox.connect(plain.sandbox_id, **options)
    assert [p.pid for p in plain_again.commands.list()] == [handle.pid]
    assert again.kill() and plain_again.kill()


def test_a_write_bridges_a_gateway_that_is_away(server: Server) -> None:
    """A driver tries again while the gateway is not there (design 6.2)."""
    sandbox = server.create(metadata=SESSION)
    marker = "/home/user/written"
    sandbox.commands.run("mkdir -p work")
    sandbox.commands.run(
        f"until [ -e go ]; do sleep 0.05; done; echo away > /workspace/away.txt && touch {marker}",
        background=True, timeout=0)
    container = server.container(sandbox)
    server.kill9()
    # In the gateway's place, so that failing tries are seen.
    port = int((server.folder / "gateway.port").read_text())
    with socket.create_server(("0.0.0.0", port)) as gone:
        # From outside of the API, which is not there: the daemon itself is reached by the engine.
        docker("exec", container, "touch", "/home/user/go")
        gone.settimeout(20)
        for _ in range(3):
            gone.accept()[0].close()
    server.start()
    again = Sandbox.connect(sandbox.sandbox_id, **server.options())
    until("the write has gone through", lambda: again.files.exists(marker), 30)
    stored = server.s3().get_object(Bucket="sandyard", Key="sessions/crash/away.txt")
    assert stored["Body"].read() == b"away\n"
    again.kill()


def test_an_engine_that_goes_away_is_named_and_comes_back(
        own_server: Callable[..., Server], folder: pathlib.Path) -> None:
    path = folder / "engine.sock"
    first = EngineProxy(path)
    server = own_server(SANDYARD_DOCKER__HOST=first.host)
    sandbox = server.create()
    first.close()
    answer = post_create(server)
    assert answer.status_code == 500
    assert "the container engine does not answer" in answer.json()["message"]
    # What runs does not need the engine.
    assert sandbox.commands.run("echo on").stdout == "on\n"
    # It answers until this process ends: the server's own end needs it too.
    EngineProxy(path)
    server.create().kill()
    assert sandbox.kill()
    # What the failed create could not take back is taken back now.
    until("nothing is left", lambda: server.containers() == [])

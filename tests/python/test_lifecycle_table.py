"""The table of the life cycle, row by row, as it can be walked from outside (control-plane 3.2).

The rows of transitions are walked with the engine's call held: a sandbox is then for as long as the test wants in the
state that otherwise lasts some milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from conftest import Server, until
from lifecycle import OPERATIONS, UNKNOWN, HeldEngine, Rest, ask, serve_counter

# What each operation answers in each state that lasts.
RUNNING = {"get": 200, "pause": 204, "kill": 204, "connect": 200, "connect v1": 200, "resume": 409, "timeout": 204,
           "refreshes": 204, "snapshot": 201, "fork": 201}
PAUSED = {"get": 200, "pause": 409, "kill": 204, "connect": 201, "connect v1": 201, "resume": 201, "timeout": 404,
          "refreshes": 404, "snapshot": 404, "fork": 409}
NOTHING = dict.fromkeys(OPERATIONS, 404)

# And what the state is after it.
AFTER_RUNNING = dict.fromkeys(OPERATIONS, "running") | {"pause": "paused", "kill": "gone"}
AFTER_PAUSED = dict.fromkeys(OPERATIONS, "paused") | {
    "kill": "gone", "connect": "running", "connect v1": "running", "resume": "running"}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_running(rest: Rest, operation: str) -> None:
    sandbox = rest.create()
    rest.does(operation, sandbox, RUNNING[operation])
    assert rest.state(sandbox) == AFTER_RUNNING[operation]


@pytest.mark.parametrize("memory", [True, False], ids=["memory kept", "file system only"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_paused(rest: Rest, operation: str, memory: bool) -> None:
    sandbox = rest.create()
    rest.does("pause", sandbox, 204, body={"memory": memory})
    assert rest.state(sandbox) == "paused"
    rest.does(operation, sandbox, PAUSED[operation])
    assert rest.state(sandbox) == AFTER_PAUSED[operation]


@pytest.fixture(scope="module")
def other_key(server: Server) -> str:
    return server.command("team", "add", "table").stdout.strip()


@pytest.mark.parametrize("state", ["running", "paused"])
def test_of_another_team(server: Server, rest: Rest, other_key: str, state: str) -> None:
    sandbox = rest.create()
    if state == "paused":
        rest.does("pause", sandbox, 204)
    stranger = Rest(server, other_key)
    for operation, status in NOTHING.items():
        stranger.does(operation, sandbox, status)
    assert stranger.listed() == []
    stranger.close()
    assert rest.state(sandbox) == state


def test_unknown_and_killed(rest: Rest) -> None:
    killed, killed_while_paused = rest.create(), rest.create()
    rest.does("pause", killed_while_paused, 204)
    for sandbox in (killed, killed_while_paused):
        rest.does("kill", sandbox, 204)
    for sandbox in (UNKNOWN, killed, killed_while_paused):
        for operation, status in NOTHING.items():
            rest.does(operation, sandbox, status)


def test_ids_with_a_clients_suffix(rest: Rest) -> None:
    """control-plane 4.1, 8.11"""
    sandbox = rest.create()
    suffixed = f"{sandbox}-6532622b"
    for operation, status in [("pause", 204), ("get", 200), ("resume", 201), ("timeout", 204), ("refreshes", 204),
                              ("snapshot", 201), ("fork", 201), ("pause", 204), ("connect", 201), ("kill", 204)]:
        rest.does(operation, suffixed, status)
    altered = rest.does("resume", f"{sandbox}x-6532622b", 404).json()["message"]
    assert "doesn't exist or you don't have access to it" in altered
    for operation in OPERATIONS:
        assert rest.does(operation, "a-b-c", 400).json()["message"] == "Invalid sandbox ID"


# ---- transitions, held -----------------------------------------------------------------------


@pytest.fixture
def held(held_engine: HeldEngine) -> Iterator[Rest]:
    made = Rest(held_engine.server)
    yield made
    made.close()


def begin_waiting(engine: HeldEngine, rest: Rest, operation: str, sandbox: str) -> Callable[[], httpx.Response]:
    """Begins an operation that has to wait. The call returns its answer; before that, it must still be waiting."""
    going_on = engine.begin(lambda: rest.call(operation, sandbox))
    # The server has taken this request after the one that waits.
    for _ in range(3):
        rest.does("get", sandbox, 200, 404)
    assert not going_on.done(), f"{operation} did not wait: {going_on.result().status_code}"
    return lambda: going_on.result(60)


SNAPSHOT, FREEZE = r"^POST [^ ]*/commit\?", r"^POST [^ ]*/containers/{}/pause"
# However the engine is told that a sandbox's processes are to end, or are gone.
END = r"^(DELETE [^ ]*/containers/{0}|POST [^ ]*/containers/{0}/(kill|stop))\b"


@pytest.mark.parametrize(("waiting", "status", "state"), [
    ("pause", 204, "paused"), ("kill", 204, "gone"), ("connect", 200, "running"), ("connect v1", 200, "running")])
def test_while_a_snapshot_is_taken(
        held_engine: HeldEngine, held: Rest, waiting: str, status: int, state: str) -> None:
    sandbox = held.create()
    with held_engine.hold(SNAPSHOT) as commit:
        snapshot = held_engine.begin(lambda: held.call("snapshot", sandbox))
        commit.reached(snapshot)
        assert held.state(sandbox) == "running"
        for operation in ("resume", "timeout", "refreshes", "snapshot", "fork"):
            held.does(operation, sandbox, 409)
        wait = begin_waiting(held_engine, held, waiting, sandbox)
    assert snapshot.result(60).status_code == 201
    assert wait().status_code == status
    assert held.state(sandbox) == state


@pytest.mark.parametrize(("waiting", "status", "state"), [
    ("pause", 204, "paused"), ("kill", 204, "gone"), ("connect", 201, "running"), ("connect v1", 201, "running"),
    ("resume", 201, "running")])
def test_while_it_is_paused(
        held_engine: HeldEngine, held: Rest, waiting: str, status: int, state: str) -> None:
    sandbox = held.create()
    container = held_engine.server.container(sandbox)
    with held_engine.hold(FREEZE.format(container)) as freeze:
        pause = held_engine.begin(lambda: held.call("pause", sandbox))
        freeze.reached(pause)
        shown = held.detail(sandbox)
        # Which memory it will have is not known yet (control-plane 3.1).
        assert shown["state"] == "paused" and "pauseMode" not in shown
        for operation in ("timeout", "refreshes"):
            held.does(operation, sandbox, 404, 409)
        for operation in ("snapshot", "fork"):
            held.does(operation, sandbox, 409)
        wait = begin_waiting(held_engine, held, waiting, sandbox)
        # Listed at every moment, once (control-plane 8.5).
        assert [s["sandboxID"] for s in held.listed() if s["sandboxID"] == sandbox] == [sandbox]
    assert pause.result(60).status_code == 204
    assert wait().status_code == status
    assert held.state(sandbox) == state


def test_while_it_is_killed(held_engine: HeldEngine, held: Rest) -> None:
    sandbox = held.create()
    container = held_engine.server.container(sandbox)
    with held_engine.hold(END.format(container)) as end:
        kill = held_engine.begin(lambda: held.call("kill", sandbox))
        end.reached(kill)
        assert held.state(sandbox) == "gone"
        assert sandbox not in {s["sandboxID"] for s in held.listed()}
        for operation in ("resume", "refreshes"):
            held.does(operation, sandbox, 404, 409)
        # It may be killed already as far as its client is concerned: then it is unknown.
        for operation in ("pause", "connect", "connect v1", "timeout", "snapshot", "fork"):
            held.does(operation, sandbox, 404, 409)
        joined = held_engine.begin(lambda: held.call("kill", sandbox))
    assert kill.result(60).status_code == 204
    # 204 if it came while the first was going on.
    assert joined.result(60).status_code in (204, 404)
    assert held.state(sandbox) == "gone"
    until("its container is gone", lambda: container not in held_engine.server.containers())


def test_an_http_request_waits_for_a_pause_and_wakes_it(held_engine: HeldEngine, held: Rest) -> None:
    """control-plane 5.7: it is pausing right now."""
    sandbox = held.create(autoPause=True, autoResume={"enabled": True})
    serve_counter(held.sdk(sandbox))
    server = held_engine.server
    before = ask(server, sandbox).text.split()
    with held_engine.hold(FREEZE.format(server.container(sandbox))) as freeze:
        pause = held_engine.begin(lambda: held.call("pause", sandbox))
        freeze.reached(pause)
        request = held_engine.begin(lambda: ask(server, sandbox))
        held.does("get", sandbox, 200)
        assert not request.done()
    assert pause.result(60).status_code == 204
    answer = request.result(60)
    assert (answer.status_code, answer.text.split()[1]) == (200, before[1])
    assert held.state(sandbox) == "running"

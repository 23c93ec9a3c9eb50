"""The same and different operations at once (control-plane 3.2, "Concurrency", 8.5, 8.8)."""

from __future__ import annotations

import threading

import pytest
from conftest import Server, until
from lifecycle import Rest, in_parallel, serve_counter, ask

MODES = pytest.mark.parametrize("memory", [True, False], ids=["memory kept", "file system only"])


@MODES
def test_five_pauses_are_one(rest: Rest, memory: bool) -> None:
    sandbox = rest.create()
    answers = in_parallel(5, lambda: rest.call("pause", sandbox, {"memory": memory}))
    assert [a.status_code for a in answers] == [204] * 5
    shown = rest.detail(sandbox)
    assert (shown["state"], shown["pauseMode"]) == ("paused", "full" if memory else "filesystem")


@MODES
def test_five_connects_are_one(rest: Rest, memory: bool) -> None:
    sandbox = rest.create()
    token = rest.detail(sandbox)["envdAccessToken"]
    rest.does("pause", sandbox, 204, body={"memory": memory})
    answers = in_parallel(5, lambda: rest.call("connect", sandbox))
    assert {a.status_code for a in answers} <= {200, 201} and 201 in {a.status_code for a in answers}
    assert {a.json()["envdAccessToken"] for a in answers} == {token}
    assert rest.state(sandbox) == "running"
    assert rest.sdk(sandbox).commands.run("echo on").stdout == "on\n"


@MODES
def test_five_resumes_are_one_or_come_late(rest: Rest, memory: bool) -> None:
    sandbox = rest.create()
    rest.does("pause", sandbox, 204, body={"memory": memory})
    statuses = [a.status_code for a in in_parallel(5, lambda: rest.call("resume", sandbox))]
    # 409: it was running when that one arrived.
    assert set(statuses) <= {201, 409} and 201 in statuses
    assert rest.state(sandbox) == "running"


def test_five_kills_are_one(rest: Rest) -> None:
    for pause in (False, True):
        sandbox = rest.create()
        if pause:
            rest.does("pause", sandbox, 204)
        statuses = [a.status_code for a in in_parallel(5, lambda: rest.call("kill", sandbox))]
        assert set(statuses) <= {204, 404} and 204 in statuses
        assert rest.state(sandbox) == "gone"


def test_a_set_timeout_during_a_pause(rest: Rest) -> None:
    """control-plane 8.8: never 204 once it pauses, never 500; and the paused one keeps its moment."""
    sandbox = rest.create(timeout=100)
    paused = threading.Event()
    statuses: list[int] = []

    def set_timeouts() -> None:
        while not paused.is_set():
            statuses.append(rest.call("timeout", sandbox, {"timeout": 3000}).status_code)

    background = threading.Thread(target=set_timeouts)
    background.start()
    until("one was set", lambda: statuses)
    rest.does("pause", sandbox, 204)
    paused.set()
    background.join(20)
    assert set(statuses) <= {204, 404, 409}
    begun, end = rest.times(sandbox)
    assert (end - begun).total_seconds() < 60
    rest.does("timeout", sandbox, 404)


def test_listed_at_every_moment_once_and_right_after_each_answer(rest: Rest) -> None:
    """control-plane 3.2, 8.5: running and paused together show it always, and no answer comes before its state."""
    sandbox = rest.create(metadata={"moments": "1"})
    done = threading.Event()
    wrong: list[object] = []
    looks: list[int] = []

    def look() -> None:
        with rest.server.http() as api:
            while not done.is_set():
                shown = api.get("/v2/sandboxes", params={"metadata": "moments=1"}).json()
                looks.append(len(shown))
                if [s["sandboxID"] for s in shown] != [sandbox]:
                    wrong.append(shown)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    for n in range(10):
        rest.does("pause", sandbox, 204, body={"memory": n % 4 != 3})
        assert rest.state(sandbox) == "paused"
        rest.does("connect", sandbox, 201)
        assert rest.state(sandbox) == "running"
    done.set()
    for looker in lookers:
        looker.join(20)
    assert len(looks) > 20 and wrong == []


def test_pauses_and_connects_of_many_clients(rest: Rest) -> None:
    """Whatever their order, each answer is one of the table's, and the state that is left works."""
    sandbox = rest.create()
    serve_counter(rest.sdk(sandbox))
    allowed = {"pause": {204, 409}, "connect": {200, 201}, "resume": {201, 409}, "timeout": {204, 404, 409},
               "get": {200}}
    wrong: list[str] = []

    def client(operations: list[str]) -> None:
        for operation in operations * 5:
            answer = rest.call(operation, sandbox)
            if answer.status_code not in allowed[operation]:
                wrong.append(f"{operation}: {answer.status_code} {answer.text}")

    clients = [threading.Thread(target=client, args=[order]) for order in (
        ["pause", "get", "connect"], ["connect", "timeout", "pause"], ["resume", "pause", "get"],
        ["timeout", "get", "connect"])]
    for one in clients:
        one.start()
    for one in clients:
        one.join(120)
    assert wrong == []
    rest.does("connect", sandbox, 200, 201)
    assert ask(rest.server, sandbox).text.startswith("1 ")


def test_a_kill_while_it_is_paused_resumed_or_copied(rest: Rest, server: Server) -> None:
    for operation in ("pause", "connect", "snapshot", "fork"):
        sandbox = rest.create()
        container = server.container(sandbox)
        if operation == "connect":
            rest.does("pause", sandbox, 204)
        statuses: dict[str, int] = {}

        def call(name: str, sandbox: str = sandbox, statuses: dict[str, int] = statuses) -> None:
            statuses[name] = rest.call(name, sandbox).status_code

        both = [threading.Thread(target=call, args=[name]) for name in (operation, "kill")]
        for one in both:
            one.start()
        for one in both:
            one.join(60)
        assert statuses["kill"] == 204, (operation, statuses)
        assert statuses[operation] in {200, 201, 204, 404, 409}, (operation, statuses)
        assert rest.state(sandbox) == "gone"
        until("its container is gone", lambda name=container: name not in server.containers())

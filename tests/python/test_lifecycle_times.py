"""Start and end times of sandboxes over connects, pauses and resumes (control-plane 3.2, 3.4, 8.1 to 8.12)."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import pytest
from conftest import Server, until
from e2b import Sandbox
from lifecycle import UNKNOWN, Rest, parse_time, seconds_left

# Between a call's moment and the look at what it did.
SLACK = 5
DAY = 24 * 3600


def life(rest: Rest, sandbox: str) -> float:
    begun, end = rest.times(sandbox)
    return (end - begun).total_seconds()


def age(rest: Rest, sandbox: str) -> float:
    return (datetime.datetime.now(datetime.timezone.utc) - rest.times(sandbox)[0]).total_seconds()


def test_a_connect_or_refresh_of_a_running_one_only_extends(rest: Rest) -> None:
    sandbox = rest.create(timeout=600)
    before = rest.detail(sandbox)
    for operation, body in [("connect", {"timeout": 60}), ("connect", {"timeout": 0}), ("connect", {}),
                            ("connect v1", {"timeout": 60}), ("refreshes", {"duration": 60}), ("refreshes", {}),
                            ("refreshes", {"duration": 0})]:
        rest.does(operation, sandbox, 200, 204, body=body)
        shown = rest.detail(sandbox)
        # The very same bytes.
        assert (shown["startedAt"], shown["endAt"]) == (before["startedAt"], before["endAt"]), (operation, body)
    rest.does("connect", sandbox, 200, body={"timeout": 900})
    assert abs(seconds_left(rest, sandbox) - 900) < SLACK
    rest.does("refreshes", sandbox, 204, body={"duration": 1200})
    assert abs(seconds_left(rest, sandbox) - 1200) < SLACK
    assert rest.detail(sandbox)["startedAt"] == before["startedAt"]


def test_a_refresh_gives_15_s_at_least(rest: Rest) -> None:
    for body in ({}, {"duration": 0}, {"duration": 3}):
        sandbox = rest.create(timeout=4)
        rest.does("refreshes", sandbox, 204, body=body)
        assert 15 - SLACK < seconds_left(rest, sandbox) <= 15


@pytest.mark.parametrize("memory", [True, False], ids=["memory kept", "file system only"])
@pytest.mark.parametrize(("operation", "body", "expected"), [
    ("resume", {}, 15), ("resume", {"timeout": 70}, 70), ("connect", {}, 300), ("connect", {"timeout": 70}, 70),
    ("connect v1", {"timeout": 70}, 70)])
def test_a_resume_starts_a_new_span(
        rest: Rest, operation: str, body: dict[str, int], expected: int, memory: bool) -> None:
    sandbox = rest.create(timeout=1000)
    first = rest.detail(sandbox)
    rest.does("pause", sandbox, 204, body={"memory": memory})
    paused = rest.detail(sandbox)
    # While paused: the start of the last run, and the moment of the pause.
    assert paused["startedAt"] == first["startedAt"]
    assert -SLACK < seconds_left(rest, sandbox) <= 0
    rest.does(operation, sandbox, 201, body=body)
    again = rest.detail(sandbox)
    assert parse_time(again["startedAt"]) > parse_time(paused["endAt"])
    assert age(rest, sandbox) < SLACK
    assert abs(life(rest, sandbox) - expected) < 1


def test_times_stay_right_over_many_pauses(rest: Rest) -> None:
    sandbox = rest.create(timeout=100)
    for timeout in (50, 200, 35, 400, 60):
        rest.does("pause", sandbox, 204)
        rest.does("connect", sandbox, 201, body={"timeout": timeout})
        assert abs(life(rest, sandbox) - timeout) < 1
        assert abs(seconds_left(rest, sandbox) - timeout) < SLACK


def test_set_timeout_moves_the_end_both_ways_and_is_clamped(rest: Rest) -> None:
    sandbox = rest.create(timeout=100)
    begun = rest.detail(sandbox)["startedAt"]
    for timeout in (500, 50):
        rest.does("timeout", sandbox, 204, body={"timeout": timeout})
        assert abs(seconds_left(rest, sandbox) - timeout) < SLACK
    rest.does("timeout", sandbox, 204, body={"timeout": 10**6})
    assert life(rest, sandbox) <= DAY
    assert rest.detail(sandbox)["startedAt"] == begun


def test_timeouts_above_the_maximum_are_refused_before_the_sandbox_is_looked_for(rest: Rest) -> None:
    for operation in ("connect", "connect v1"):
        rest.does(operation, UNKNOWN, 400, body={"timeout": 3 * DAY})
    sandbox = rest.create()
    rest.does("pause", sandbox, 204)
    rest.does("connect", sandbox, 400, body={"timeout": 3 * DAY})
    assert rest.state(sandbox) == "paused"


def test_timeout_zero_ends_it_at_once(rest: Rest) -> None:
    killed, paused = rest.create(), rest.create(autoPause=True)
    for sandbox in (killed, paused):
        rest.does("timeout", sandbox, 204, body={"timeout": 0})
    until("the one is gone", lambda: rest.state(killed) == "gone", 10)
    until("the other is paused", lambda: rest.state(paused) == "paused", 10)


def test_what_was_paused_or_running_is_so_after_a_restart(own_server: Callable[..., Server]) -> None:
    """Timers: end times are exact although the server was away; what came due meanwhile happens then."""
    server = own_server()
    rest = Rest(server)
    running, paused = rest.create(timeout=500), rest.create(timeout=500)
    due = rest.create(timeout=3, autoPause=True)
    filesystem = rest.create()
    rest.does("pause", paused, 204)
    rest.does("pause", filesystem, 204, body={"memory": False})

    def details(rest: Rest) -> list[dict[str, object]]:
        # The proxy's port is another one after a restart, and the domain names it.
        return [rest.detail(sandbox) | {"domain": None} for sandbox in (running, paused, filesystem)]

    before = details(rest)
    due_at = rest.times(due)[1]
    server.kill9()
    until("the third's time is over", lambda: datetime.datetime.now(datetime.timezone.utc) > due_at)
    server.start()
    rest = Rest(server)
    assert details(rest) == before
    until("the third is paused", lambda: rest.state(due) == "paused")
    for sandbox in (paused, due, filesystem):
        rest.does("connect", sandbox, 201)
        assert Sandbox.connect(sandbox, **server.options()).commands.run("echo on").stdout == "on\n"
    for sandbox in (running, paused, due, filesystem):
        rest.does("kill", sandbox, 204)
    rest.close()

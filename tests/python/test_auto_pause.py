"""What happens when a sandbox's time is over: kill or pause, with memory or without, each time again
(control-plane 3.4, 8.4)."""

from __future__ import annotations

import pytest
from conftest import Server, until
from e2b import Sandbox, SandboxState
from lifecycle import STARTED, Rest, ask, seconds_left, serve_counter


def expire(rest: Rest, sandbox: str) -> None:
    rest.does("timeout", sandbox, 204, body={"timeout": 0})


def is_paused(rest: Rest, sandbox: str) -> None:
    until("it is paused", lambda: rest.state(sandbox) == "paused", 10)
    # Pausing is over when the kind of memory is told.
    until("the pause is complete", lambda: "pauseMode" in rest.detail(sandbox))


@pytest.mark.parametrize(("memory", "mode"), [(None, "full"), (True, "full"), (False, "filesystem")])
def test_a_timeout_pauses_each_time(rest: Rest, memory: bool | None, mode: str) -> None:
    kind = {} if memory is None else {"autoPauseMemory": memory}
    sandbox = rest.create(autoPause=True, timeout=2, **kind)
    assert rest.detail(sandbox)["lifecycle"] == {"autoResume": False, "onTimeout": "pause"}
    for _ in range(3):
        is_paused(rest, sandbox)
        assert rest.detail(sandbox)["pauseMode"] == mode
        # Not before its time, and not long after it.
        begun, end = rest.times(sandbox)
        assert 1.5 < (end - begun).total_seconds() < 6
        rest.does("connect", sandbox, 201, body={"timeout": 2})


def test_without_auto_pause_a_timeout_kills(rest: Rest, server: Server) -> None:
    for body in ({}, {"autoPause": False}, {"autoPause": False, "autoPauseMemory": True}):
        sandbox = rest.create(timeout=1, **body)
        container = server.container(sandbox)
        until("it is gone", lambda sandbox=sandbox: rest.state(sandbox) == "gone", 10)
        until("its container is gone", lambda container=container: container not in server.containers())


def test_a_manual_pause_of_the_other_kind_leaves_the_policy(rest: Rest) -> None:
    sandbox = rest.create(autoPause=True, autoPauseMemory=False)
    rest.does("pause", sandbox, 204, body={"memory": True})
    assert rest.detail(sandbox)["pauseMode"] == "full"
    rest.does("connect", sandbox, 201)
    expire(rest, sandbox)
    is_paused(rest, sandbox)
    assert rest.detail(sandbox)["pauseMode"] == "filesystem"


def test_a_resume_may_change_the_policy_for_its_run(rest: Rest) -> None:
    kills, pauses = rest.create(autoPause=True), rest.create()
    for sandbox, policy in ((kills, False), (pauses, True)):
        rest.does("pause", sandbox, 204)
        rest.does("resume", sandbox, 201, body={"timeout": 60, "autoPause": policy})
        expire(rest, sandbox)
    until("the one is gone", lambda: rest.state(kills) == "gone", 10)
    is_paused(rest, pauses)


def test_an_end_that_comes_while_it_is_paused_does_nothing(rest: Rest) -> None:
    for body in ({"autoPause": True}, {}):
        sandbox = rest.create(timeout=2, **body)
        due = rest.times(sandbox)[1]
        rest.does("pause", sandbox, 204)
        other = rest.create(timeout=2)
        until("another one of the same age is gone", lambda other=other: rest.state(other) == "gone")
        assert rest.state(sandbox) == "paused"
        assert rest.times(sandbox)[1] <= due
        rest.does("connect", sandbox, 201)


def test_what_runs_goes_on_after_a_timeout_with_memory(server: Server) -> None:
    sandbox = server.create(lifecycle={"on_timeout": "pause"}, timeout=600)
    try:
        pid = serve_counter(sandbox)
        assert ask(server, sandbox).text == f"1 {pid}"
        sandbox.set_timeout(0)
        until("it is paused", lambda: sandbox.get_info().state == SandboxState.PAUSED, 10)
        again = Sandbox.connect(sandbox.sandbox_id, **server.options())
        assert ask(server, again).text == f"2 {pid}"
    finally:
        sandbox.kill()


def test_what_was_written_is_there_after_a_timeout_without(server: Server) -> None:
    action = {"action": "pause", "mode": "filesystem"}
    sandbox = server.create(lifecycle={"on_timeout": action}, timeout=600)
    try:
        sandbox.files.write("kept.txt", "kept")
        boot = sandbox.commands.run(STARTED).stdout
        sandbox.set_timeout(0)
        until("it is paused", lambda: sandbox.get_info().state == SandboxState.PAUSED, 10)
        again = Sandbox.connect(sandbox.sandbox_id, **server.options())
        assert again.files.read("kept.txt") == "kept"
        assert again.commands.run(STARTED).stdout != boot
    finally:
        sandbox.kill()


def test_what_every_sdk_sends(rest: Rest) -> None:
    """SDK 2.25 to 2.40 send all of it, JavaScript and OpenAI's agents SDK ask for a pause (control-plane 3.3)."""
    for body in ({"autoPause": False, "autoResume": {"enabled": False}},
                 {"autoPause": True, "autoPauseMemory": True, "autoResume": {"enabled": True}},
                 {"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": False}}):
        sandbox = rest.create(**body)
        assert rest.detail(sandbox)["lifecycle"] == {
            "autoResume": body["autoResume"]["enabled"], "onTimeout": "pause" if body["autoPause"] else "kill"}
        assert seconds_left(rest, sandbox) > 290

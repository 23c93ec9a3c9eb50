"""A commit that fails: the disk is full, or the engine dies (issue 10, 2 and 7). The sandbox goes on, and nothing is
left."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
import threading

import pytest
from conftest import docker, until
from engine_proxy import EngineProxy
from lifecycle import HeldEngine, Rest, serve_counter

COMMIT = r"^POST [^ ]*/commit\?"
NO_SPACE = "write /var/lib/docker/tmp: no space left on device"


def images() -> set[str]:
    return set(docker("images", "-aq", "--no-trunc").split())


@pytest.mark.parametrize("operation", ["snapshot", "fork"])
def test_a_full_disk(held_engine: HeldEngine, operation: str) -> None:
    rest, before = Rest(held_engine.server), images()
    sandbox = rest.create()
    client = rest.sdk(sandbox)
    client.files.write("/workspace/kept.txt", "kept")
    pid = serve_counter(client)
    rule = held_engine.engine.refuse(COMMIT, "500 Internal Server Error", NO_SPACE)
    refused = rest.does(operation, sandbox, 503)
    assert rule.fired.is_set()
    assert "no space left on device" in refused.json()["message"]
    assert rest.state(sandbox) == "running"
    assert pid in {process.pid for process in client.commands.list()}
    client.files.write("/workspace/after.txt", "after")
    assert [s["sandboxID"] for s in rest.listed()] == [sandbox]
    assert rest.http.get("/snapshots").json() == [] and images() == before
    # With room again it can be done.
    rest.does(operation, sandbox, 201)
    rest.close()


def test_an_engine_that_dies() -> None:
    """It answers nothing more in the middle of a commit. When it is back the sandbox runs with its memory."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sy-"))
    held = HeldEngine(folder)
    rest, before = Rest(held.server), images()
    sandbox = rest.create()
    client = rest.sdk(sandbox)
    pid = serve_counter(client)
    died = threading.Event()

    def die() -> None:
        held.engine.close()
        died.set()

    # It breaks off without an answer: a Rule's answer is sent in the engine's place, and this one is not HTTP.
    held.engine.at(COMMIT, die, before=True).answer = b"\r\n"
    answered = held.begin(lambda: rest.call("snapshot", sandbox))
    assert died.wait(30)
    held.engine = EngineProxy(folder / "engine.sock")
    answer = answered.result(60)
    assert answer.status_code in (500, 503), answer.text
    until("it runs again", lambda: client.commands.run("echo on").stdout == "on\n")
    assert rest.state(sandbox) == "running"
    assert pid in {process.pid for process in client.commands.list()}
    assert rest.http.get("/snapshots").json() == [] and images() == before
    rest.does("snapshot", sandbox, 201)
    rest.close()
    held.close()
    shutil.rmtree(folder)

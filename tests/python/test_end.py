"""The end of a sandbox as those see it who are listening: an error that says so, never a result."""

from __future__ import annotations

import socket
import subprocess
import threading
import uuid
from collections.abc import Callable

import pytest
from conftest import Server, docker, until
from e2b import Sandbox
from e2b.exceptions import SandboxNotRunningException

# Takes TERM for a reason to save its work, and calls that a success.
SAVES_ON_TERM = """
save() { echo saving; if [ -d /workspace ]; then echo last > /workspace/artifacts/last; fi; exit 0; }
trap save TERM
echo ready
while :; do sleep 0.02; done
"""


class Listener:
    """Runs a command in a thread and keeps what came of it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.ready = threading.Event()
        self.output = ""
        self.outcome: object = None
        self.thread = threading.Thread(target=self._run, args=[sandbox])
        self.thread.start()
        assert self.ready.wait(20), f"the command did not start: {self.outcome!r}"

    def _run(self, sandbox: Sandbox) -> None:
        try:
            self.outcome = sandbox.commands.run(SAVES_ON_TERM, timeout=0, on_stdout=self._hear)
        except Exception as error:
            self.outcome = error

    def _hear(self, text: str) -> None:
        self.output += text
        if "ready" in self.output:
            self.ready.set()

    def heard_of_the_end(self) -> None:
        self.thread.join(20)
        assert not self.thread.is_alive(), "the command did not end for its client"
        assert type(self.outcome) is SandboxNotRunningException, repr(self.outcome)
        assert self.output == "ready\n"


@pytest.fixture
def session() -> str:
    return f"end-{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["workspace", "no workspace"])
def metadata(request: pytest.FixtureRequest, session: str) -> dict[str, str]:
    return {"session": session} if request.param == "workspace" else {}


def saved(server: Server, metadata: dict[str, str]) -> bool:
    """Whether the command's last words are in the store; without a workspace there is nothing to save."""
    if not metadata:
        return True
    key = f"sessions/{metadata['session']}/artifacts/last"
    bucket = server.variables["SANDYARD_S3_BUCKET"]
    return server.s3().get_object(Bucket=bucket, Key=key)["Body"].read() == b"last\n"


def test_a_killed_sandbox_gives_no_result(server: Server, metadata: dict[str, str]) -> None:
    sandbox = server.create(metadata=metadata)
    listener = Listener(sandbox)
    assert sandbox.kill()
    listener.heard_of_the_end()
    assert saved(server, metadata)


def test_an_expired_sandbox_gives_no_result(server: Server, metadata: dict[str, str]) -> None:
    sandbox = server.create(metadata=metadata, timeout=3)
    container = server.container(sandbox)
    listener = Listener(sandbox)
    listener.heard_of_the_end()
    until("the sandbox is removed", lambda: container not in server.containers())
    assert saved(server, metadata)


def test_who_joined_a_command_hears_of_the_end_too(server: Server, session: str) -> None:
    sandbox = server.create(metadata={"session": session})
    started = sandbox.commands.run(SAVES_ON_TERM, background=True, timeout=0)
    joined = Sandbox.connect(sandbox.sandbox_id, **server.options()).commands.connect(started.pid, timeout=0)
    assert sandbox.kill()
    for handle in (started, joined):
        with pytest.raises(SandboxNotRunningException):
            handle.wait()


def test_a_sandbox_that_somebody_froze_loses_nothing(server: Server, session: str) -> None:
    """design 6.3: also with the engine's pause, a kill ends the processes and stores what they wrote."""
    sandbox = server.create(metadata={"session": session})
    listener = Listener(sandbox)
    docker("pause", server.container(sandbox))
    assert sandbox.kill()
    listener.heard_of_the_end()
    assert saved(server, {"session": session})


def test_a_server_outlives_whoever_told_it_to_go_down(own_server: Callable[..., Server]) -> None:
    """Where it is a container's first process, its end kills the command before its exit code is known."""
    server = own_server()
    with socket.socket(socket.AF_UNIX) as command:
        command.connect(str(server.folder / "control.sock"))
        command.sendall(b"down\n")
        with command.makefile("r") as answer:
            assert answer.read().splitlines()[-1] == "down"
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.3)
    assert server.process.wait(20) == 0
    server.start()

"""A workspace over a pause: what was written is in the store when the pause has answered, and after a resume it is
mounted, may be written, and shows what the store has become meanwhile (issue 10, 2)."""

from __future__ import annotations

import hashlib
import pathlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import BUCKET, Minio, Server, until
from e2b import Sandbox
from e2b.exceptions import SandboxException
from lifecycle import Rest, ask, serve_counter

MODES = pytest.mark.parametrize("mode", ["full", "filesystem"])

# Writes as a program does that keeps its file open: nothing but a flush of the pause's own stores the last bytes.
WRITER = """
import sys
with open(sys.argv[1], "wb") as file:
    file.write(b"x" * int(sys.argv[2]))
    file.flush()
    print("written", flush=True)
    sys.stdin.readline()
    file.write(b"end")
print("closed", flush=True)
sys.stdin.readline()
"""


@dataclass
class Session:
    """A session's sandbox, and its objects in the store seen from outside."""

    server: Server
    s3: Any
    bucket: str
    name: str
    sandbox: Sandbox

    def key(self, path: str) -> str:
        return f"sessions/{self.name}/{path}"

    def put(self, path: str, body: bytes) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=self.key(path), Body=body)

    def delete(self, path: str) -> None:
        self.s3.delete_object(Bucket=self.bucket, Key=self.key(path))

    def get(self, path: str) -> bytes:
        return self.s3.get_object(Bucket=self.bucket, Key=self.key(path))["Body"].read()

    def connect(self) -> Sandbox:
        return Sandbox.connect(self.sandbox.sandbox_id, timeout=600, **self.server.options())


@pytest.fixture(scope="module", params=["embedded", "minio"])
def store(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Any, str]]:
    """Each store in turn."""
    if request.param == "embedded":
        server = request.getfixturevalue("server")
        yield server, server.s3(), server.variables["SANDYARD_S3_BUCKET"]
        return
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sy-"))
    minio = Minio(folder / "minio")
    server = Server(folder / "data", minio.settings())
    yield server, minio.s3(), BUCKET
    server.down()
    minio.stop()
    shutil.rmtree(folder)


@pytest.fixture
def session(store: tuple[Server, Any, str]) -> Iterator[Session]:
    server, s3, bucket = store
    name = f"pause-{uuid.uuid4().hex[:12]}"
    made = Session(server, s3, bucket, name, server.create(metadata={"session": name}, timeout=600))
    yield made
    made.sandbox.kill()


def hold_open(sandbox: Sandbox, path: str, size: int) -> Any:
    """Starts a program that has written and not closed."""
    sandbox.files.write("writer.py", WRITER)
    handle = sandbox.commands.run(f"python3 writer.py {path} {size}", background=True, stdin=True, timeout=0)
    heard = next(out for out, _, _ in handle if out)
    assert heard == "written\n"
    return handle


@MODES
def test_what_was_written_just_before_is_in_the_store(session: Session, mode: str) -> None:
    sandbox = session.sandbox
    for turn in range(3):
        body = f"{turn} {uuid.uuid4()}".encode() * 1000
        sandbox.files.write(f"/workspace/artifacts/{turn}", body)
        sandbox.commands.run(f"echo {turn} >> /workspace/artifacts/turns; mkdir -p /workspace/d{turn}/e; "
                             f"mv /workspace/artifacts/{turn} /workspace/d{turn}/e/moved")
        assert sandbox.pause(mode=mode)
        assert session.get(f"d{turn}/e/moved") == body
        assert session.get("artifacts/turns").decode() == "".join(f"{n}\n" for n in range(turn + 1))
        sandbox.connect(timeout=600)


def test_what_a_program_has_not_closed_is_in_the_store_and_it_writes_on(session: Session) -> None:
    size = 3_000_000
    handle = hold_open(session.sandbox, "/workspace/artifacts/open", size)
    assert session.sandbox.pause()
    assert session.get("artifacts/open") == b"x" * size
    again = session.connect()
    again.commands.send_stdin(handle.pid, "go\n")
    until("the rest is stored", lambda: session.get("artifacts/open") == b"x" * size + b"end")


def test_a_file_system_pause_stores_what_a_program_has_not_closed(session: Session) -> None:
    size = 3_000_000
    hold_open(session.sandbox, "/workspace/artifacts/open", size)
    assert session.sandbox.pause(mode="filesystem")
    assert session.get("artifacts/open") == b"x" * size
    assert session.connect().commands.run("stat -c %s /workspace/artifacts/open").stdout == f"{size}\n"


@MODES
def test_what_changed_in_the_store_meanwhile_shows(session: Session, mode: str) -> None:
    sandbox = session.sandbox
    for path in ("changed", "longer", "deleted", "same"):
        sandbox.files.write(f"/workspace/{path}", "before")
    # In every cache there is.
    sandbox.commands.run("cd /workspace; cat changed longer deleted same; stat changed longer deleted same; ls -la")
    assert sandbox.pause(mode=mode)
    session.put("changed", b"AFTER!")
    session.put("longer", b"after, and longer than it was")
    session.put("new", b"new")
    session.put("dir/deep", b"deep")
    session.delete("deleted")
    again = session.connect()
    assert again.commands.run("cd /workspace; cat changed longer new dir/deep same; ls").stdout == (
        "AFTER!after, and longer than it wasnewdeepbefore" "artifacts\nchanged\ndir\nlonger\nnew\nsame\nuploads\n")
    assert not again.files.exists("/workspace/deleted")
    assert again.files.read("/workspace/changed") == "AFTER!"
    assert again.commands.run("stat -c %s /workspace/longer").stdout == "29\n"


@MODES
def test_it_may_be_written_afterwards(session: Session, mode: str) -> None:
    for turn in range(4):
        assert session.sandbox.pause(mode=mode)
        session.sandbox.connect(timeout=600)
        body = uuid.uuid4().hex
        session.sandbox.files.write(f"/workspace/uploads/{turn}", body)
        assert session.get(f"uploads/{turn}").decode() == body
    shown = session.sandbox.commands.run("ls /workspace/uploads; stat -c '%U %a' /workspace; id -un").stdout
    assert shown.split() == ["0", "1", "2", "3", "user", *shown.split()[5:6], "user"]


def test_a_shared_session_while_one_is_paused(session: Session) -> None:
    """The other one writes; the paused one sees it when it is back."""
    other = session.server.create(metadata={"session": session.name})
    try:
        session.sandbox.files.write("/workspace/a", "first")
        assert session.sandbox.pause()
        other.files.write("/workspace/a", "second")
        assert session.connect().files.read("/workspace/a") == "second"
    finally:
        other.kill()


def test_a_timeout_stores_before_it_pauses(session: Session) -> None:
    rest = Rest(session.server)
    sandbox = rest.create(metadata={"session": session.name}, autoPause=True)
    client = rest.sdk(sandbox)
    hold_open(client, "/workspace/artifacts/late", 500_000)
    rest.does("timeout", sandbox, 204, body={"timeout": 0})
    until("it is paused", lambda: rest.state(sandbox) == "paused" and "pauseMode" in rest.detail(sandbox), 15)
    assert session.get("artifacts/late") == b"x" * 500_000
    rest.close()


def test_a_kill_of_a_paused_one_leaves_its_files(session: Session) -> None:
    for mode in ("full", "filesystem"):
        sandbox = session.server.create(metadata={"session": session.name})
        sandbox.files.write(f"/workspace/{mode}", "kept")
        assert sandbox.pause(mode=mode) and sandbox.kill()
        assert session.get(mode) == b"kept"
    assert session.connect().commands.run("cat /workspace/full /workspace/filesystem").stdout == "keptkept"


def test_a_request_wakes_it_with_its_workspace(session: Session) -> None:
    rest = Rest(session.server)
    sandbox = rest.create(metadata={"session": session.name}, autoPause=True, autoResume={"enabled": True})
    client = rest.sdk(sandbox)
    serve_counter(client)
    client.files.write("/workspace/a", "before")
    rest.does("pause", sandbox, 204)
    session.put("a", b"meanwhile")
    assert ask(session.server, sandbox).status_code == 200
    assert client.files.read("/workspace/a") == "meanwhile"
    rest.close()


@MODES
def test_over_a_restart_of_the_server(own_server: Callable[..., Server], mode: str) -> None:
    """Its key is valid and the gateway is found, though both are another server's now."""
    server = own_server()
    sandbox = server.create(metadata={"session": "restarted"}, timeout=600)
    sandbox.files.write("/workspace/a", "before")
    assert sandbox.pause(mode=mode)
    server.kill9()
    server.start()
    again = Sandbox.connect(sandbox.sandbox_id, **server.options())
    assert again.files.read("/workspace/a") == "before"
    again.files.write("/workspace/b", "after")
    stored = server.s3().get_object(Bucket=server.variables["SANDYARD_S3_BUCKET"], Key="sessions/restarted/b")
    assert stored["Body"].read() == b"after"
    assert again.kill()


@MODES
def test_a_pause_without_its_store_is_refused_and_nothing_is_lost(
        own_server: Callable[..., Server], minio: Minio, mode: str) -> None:
    """503 with the reason; the sandbox runs on as before, and the next pause stores everything."""
    server = own_server(**minio.settings(), SANDYARD_LIMITS__FLUSH_SECS="5")
    rest = Rest(server)
    sandbox = rest.create(metadata={"session": "away"})
    client = rest.sdk(sandbox)
    pid = serve_counter(client)
    handle = hold_open(client, "/workspace/artifacts/open", 200_000)
    minio.stop()
    refused = rest.does("pause", sandbox, 503, body={"memory": mode == "full"}).json()["message"]
    assert "store" in refused or minio.endpoint in refused, refused
    assert rest.state(sandbox) == "running"
    assert ask(server, sandbox).text == f"1 {pid}"
    assert {p.pid for p in client.commands.list()} == {pid, handle.pid}
    minio.start()
    rest.does("pause", sandbox, 204, body={"memory": mode == "full"})
    stored = minio.s3().get_object(Bucket=BUCKET, Key="sessions/away/artifacts/open")["Body"].read()
    assert stored == b"x" * 200_000
    rest.does("connect", sandbox, 201)
    assert client.files.read("/workspace/artifacts/open", format="bytes") == b"x" * 200_000
    rest.close()


def test_a_large_file_just_before_a_pause(session: Session) -> None:
    made = session.sandbox.commands.run(
        "head -c 50000000 /dev/urandom | tee /workspace/artifacts/big | sha256sum", timeout=120).stdout.split()[0]
    begun = time.monotonic()
    try:
        assert session.sandbox.pause()
    except SandboxException as failure:
        raise AssertionError(f"after {time.monotonic() - begun:.1f} s") from failure
    assert hashlib.sha256(session.get("artifacts/big")).hexdigest() == made
    assert session.connect().commands.run("sha256sum /workspace/artifacts/big").stdout.split()[0] == made

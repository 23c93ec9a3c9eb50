"""Workspaces: what a session's files do inside and outside, on both stores."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import BUCKET, Minio, Server, docker, until
from e2b import CommandExitException, Sandbox

NewSandbox = Callable[..., Sandbox]


@dataclass
class Store:
    """A server, and its objects seen from outside, past every sandbox."""

    server: Server
    s3: Any
    bucket: str

    def put(self, key: str, body: bytes) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        return self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def keys(self, prefix: str) -> set[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {item["Key"] for page in pages for item in page.get("Contents", [])}


@pytest.fixture(scope="module", params=["embedded", "minio"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Each store in turn."""
    if request.param == "embedded":
        server = request.getfixturevalue("server")
        yield Store(server, server.s3(), server.variables["SANDYARD_S3_BUCKET"])
        return
    folder = Path(tempfile.mkdtemp(prefix="sy-"))
    minio = Minio(folder / "minio")
    server = Server(folder / "data", minio.settings())
    yield Store(server, minio.s3(), BUCKET)
    server.down()
    minio.stop()
    shutil.rmtree(folder)


@pytest.fixture
def new_sandbox(store: Store) -> Iterator[NewSandbox]:
    """Creates sandboxes of one test, and kills those that are left at its end."""
    made: list[Sandbox] = []

    def create(**options: Any) -> Sandbox:
        made.append(store.server.create(**options))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


def new_session() -> str:
    return f"s-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def session() -> str:
    return new_session()


@pytest.fixture
def workspace(store: Store, session: str, new_sandbox: NewSandbox) -> Sandbox:
    return new_sandbox(metadata={"session": session})


def test_it_is_there_with_its_directories_when_the_first_command_runs(workspace: Sandbox) -> None:
    shown = workspace.commands.run("ls /workspace; stat -c '%U %a' /workspace; grep ' /workspace ' /proc/mounts")
    lines = shown.stdout.splitlines()
    assert lines[:2] == ["artifacts", "uploads"]
    assert lines[2].startswith("user ")
    assert " fuse.s3fs " in lines[3]


def test_round_trip(store: Store, session: str, new_sandbox: NewSandbox) -> None:
    prefix = f"sessions/{session}/"
    store.put(f"{prefix}uploads/in.txt", b"from outside")
    first = new_sandbox(metadata={"session": session})
    assert first.files.read("/workspace/uploads/in.txt") == "from outside"
    first.commands.run("tr a-z A-Z < /workspace/uploads/in.txt > /workspace/artifacts/out.txt")
    assert store.get(f"{prefix}artifacts/out.txt") == b"FROM OUTSIDE"
    first.files.write("/workspace/artifacts/deep/er/file.bin", b"\0\xff")
    assert store.get(f"{prefix}artifacts/deep/er/file.bin") == b"\0\xff"
    assert first.kill()

    second = new_sandbox(metadata={"session": session})
    assert second.files.read("/workspace/artifacts/out.txt") == "FROM OUTSIDE"
    second.commands.run("rm /workspace/artifacts/out.txt")
    assert f"{prefix}artifacts/out.txt" not in store.keys(prefix)


def test_what_a_user_does_with_files_works(workspace: Sandbox) -> None:
    script = """
set -eux
cd /workspace
echo one > a; echo two >> a; test "$(cat a)" = "$(printf 'one\\ntwo')"
mv a b; cp b c; cmp b c; ln -s b link; test "$(readlink link)" = b
chmod +x b; test -x b
mkdir -p d/e; touch d/e/f; rm -r d; test ! -e d
truncate -s 3 c; test "$(cat c)" = one
printf X | dd of=c bs=1 seek=1 conv=notrunc status=none; test "$(cat c)" = oXe
python3 - <<'PY'
import os
with open("sparse", "wb") as f:
    f.seek(100_000); f.write(b"end")
assert os.path.getsize("sparse") == 100_003
PY
"""
    workspace.commands.run(script)


def test_a_file_of_200_mb(store: Store, session: str, workspace: Sandbox) -> None:
    made = workspace.commands.run(
        "head -c 209715200 /dev/urandom | tee /workspace/artifacts/big | sha256sum", timeout=120
    ).stdout.split()[0]
    body = store.s3.get_object(Bucket=store.bucket, Key=f"sessions/{session}/artifacts/big")["Body"]
    digest = hashlib.sha256()
    for piece in body.iter_chunks(1 << 20):
        digest.update(piece)
    assert digest.hexdigest() == made


def test_what_was_closed_survives_the_kill(store: Store, session: str, workspace: Sandbox) -> None:
    workspace.commands.run("for n in $(seq 50); do echo $n > /workspace/artifacts/$n; done")
    assert workspace.kill()
    prefix = f"sessions/{session}/artifacts/"
    assert {f"{prefix}{n}" for n in range(1, 51)} <= store.keys(prefix)
    assert store.get(f"{prefix}50") == b"50\n"


def test_sessions_do_not_see_each_other(store: Store, workspace: Sandbox, new_sandbox: NewSandbox) -> None:
    workspace.files.write("/workspace/uploads/secret", "mine")
    other = new_sandbox(metadata={"session": new_session()})
    assert other.commands.run("find /workspace -type f").stdout == ""


def test_two_sandboxes_share_one_session(store: Store, session: str, new_sandbox: NewSandbox) -> None:
    one, two = (new_sandbox(metadata={"session": session}) for _ in range(2))
    one.files.write("/workspace/uploads/shared", "hello")
    read = "cat /workspace/uploads/shared 2>/dev/null || true"
    until("the other sandbox sees the file", lambda: two.commands.run(read).stdout == "hello", limit=15)


def test_a_fuse_program_that_dies_is_started_again(store: Store, workspace: Sandbox) -> None:
    workspace.files.write("/workspace/uploads/before", "kept")
    lines = docker("top", store.server.container(workspace), "-eo", "pid,comm").splitlines()[1:]
    drivers = [int(line.split()[0]) for line in lines if line.split()[1] == "s3fs"]
    assert len(drivers) == 1
    os.kill(drivers[0], signal.SIGKILL)
    read = "cat /workspace/uploads/before 2>/dev/null || true"
    until("the workspace is back", lambda: workspace.commands.run(read).stdout == "kept", limit=5)


def test_a_workspace_and_the_server_over_a_restart(own_server: Callable[..., Server]) -> None:
    server = own_server()
    sandbox = server.create(metadata={"session": "over-restart"}, timeout=600)
    sandbox.files.write("/workspace/uploads/a", "1")
    end = sandbox.get_info().end_at
    for stop in (server.restart, lambda: (server.kill9(), server.start())):
        stop()
        again = Sandbox.connect(sandbox.sandbox_id, timeout=1, **server.options())
        assert again.get_info().end_at == end
        again.commands.run("echo more >> /workspace/uploads/a")
        assert again.files.read("/workspace/uploads/a").startswith("1")
    body = server.s3().get_object(Bucket=server.variables["SANDYARD_S3_BUCKET"], Key="sessions/over-restart/uploads/a")["Body"].read()
    assert body == b"1more\nmore\n"


def test_expiry_that_came_due_while_the_server_was_down(own_server: Callable[..., Server]) -> None:
    server = own_server()
    sandbox = server.create(metadata={"session": "short"}, timeout=3)
    sandbox.commands.run("echo done > /workspace/artifacts/last")
    due = sandbox.get_info().end_at.timestamp()
    container = server.container(sandbox)
    server.kill9()
    assert container in docker("ps", "--format", "{{.Names}}")
    until("the end time has passed", lambda: time.time() > due)
    server.start()
    until("the sandbox expired", lambda: not server.containers(), limit=20)
    keys = server.s3().list_objects_v2(Bucket=server.variables["SANDYARD_S3_BUCKET"], Prefix="sessions/short/artifacts/")
    assert "sessions/short/artifacts/last" in {item["Key"] for item in keys["Contents"]}


# ---- what even root inside may not do -------------------------------------------------------


@pytest.mark.parametrize(
    "attempt",
    [
        "mount -t tmpfs none /mnt",
        "umount /workspace",
        "umount -l /workspace",
        "unshare -Urm true",
        "mkdir -p /tmp/cg && mount -t cgroup -o memory none /tmp/cg",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo b > /proc/sysrq-trigger",
        "head -c 1 /proc/kcore | grep -q .",
        "mknod /tmp/sda b 8 0 && head -c 1 /tmp/sda",
        "mknod /tmp/fuse c 10 229 && exec 3<>/tmp/fuse",
        "pgrep s3fs",
        "pkill -9 s3fs",
        "test -e /dev/fuse",
        "echo x > /.sandyard/executor",
    ],
)
def test_root_inside_cannot(mounted: Sandbox, attempt: str) -> None:
    with pytest.raises(CommandExitException):
        mounted.commands.run(attempt, user="root")


@pytest.fixture(scope="module")
def mounted(server: Server) -> Iterator[Sandbox]:
    sandbox = server.create(metadata={"session": new_session()}, timeout=600)
    yield sandbox
    assert sandbox.commands.run("sudo whoami; touch /workspace/uploads/still-fine").stdout == "root\n"
    assert sandbox.kill()


def test_no_key_is_to_be_found(mounted: Sandbox) -> None:
    # The pattern is built at run time, so that the search does not find itself.
    search = """
key=SY$(echo $E2B_SANDBOX_ID)G
grep -aslF "$key" /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/mounts /proc/self/mountinfo 2>/dev/null
find / -xdev -type f -size -10M -newer /etc/hostname 2>/dev/null | xargs -d '\\n' grep -aslF "$key"
true
"""
    assert mounted.commands.run(search, user="root", timeout=100).stdout == ""

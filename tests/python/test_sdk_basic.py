"""More of the official Python SDK, synchronous, on a sandbox without a workspace."""

from __future__ import annotations

import datetime
import io
import threading
import time
import uuid

import pytest
from conftest import Server, docker, until
from e2b import CommandExitException, FileType, Sandbox, SandboxQuery, SandboxState
from e2b.exceptions import (
    AuthenticationException,
    FileNotFoundException,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
    SandboxNotFoundException,
    TimeoutException,
)


# ---- life ---------------------------------------------------------------------------------


def test_create_tells_who_it_is(server: Server, sandbox: Sandbox) -> None:
    assert sandbox.is_running()
    assert sandbox.sandbox_id.startswith("i") and sandbox.sandbox_id.isalnum()
    info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.name == "base"
    assert info.state == SandboxState.RUNNING
    assert info.envd_version == "0.6.13"
    assert info.sandbox_domain and "e2b" not in info.sandbox_domain
    assert info.end_at - info.started_at == datetime.timedelta(seconds=300)
    assert sandbox.get_host(8000).startswith(f"8000-{sandbox.sandbox_id}.")


def test_list_is_newest_first_and_paged(server: Server) -> None:
    mark = uuid.uuid4().hex
    sandboxes = [server.create(metadata={"page": mark}) for _ in range(3)]
    made = [sandbox.sandbox_id for sandbox in sandboxes]
    query = SandboxQuery(metadata={"page": mark}, state=[SandboxState.RUNNING])
    pages = Sandbox.list(query=query, limit=2, **server.options())
    first = [item.sandbox_id for item in pages.next_items()]
    assert pages.has_next
    rest = [item.sandbox_id for item in pages.next_items()]
    assert not pages.has_next
    assert first + rest == made[::-1]
    assert all(sandbox.kill() for sandbox in sandboxes)


def test_set_timeout_may_shorten_and_lengthen(sandbox: Sandbox) -> None:
    for seconds in (600, 30):
        sandbox.set_timeout(seconds)
        left = sandbox.get_info().end_at - datetime.datetime.now(datetime.timezone.utc)
        assert abs(left.total_seconds() - seconds) < 5
    sandbox.set_timeout(1)
    until("the sandbox expired", lambda: not sandbox.is_running())


def test_unknown_ids_and_templates(server: Server) -> None:
    with pytest.raises(SandboxNotFoundException):
        Sandbox.get_info("inothere000000000000", **server.options())
    assert not Sandbox.kill("inothere000000000000", **server.options())
    with pytest.raises(SandboxException, match="template 'no-such-template' not found"):
        Sandbox.create("no-such-template", **server.options())


def test_a_wrong_key_is_refused(server: Server) -> None:
    wrong = server.options() | {"api_key": "e2b_" + "0" * 40}
    with pytest.raises(AuthenticationException):
        Sandbox.create(**wrong)


def test_without_workspace_neither_fuse_nor_sys_admin(server: Server, sandbox: Sandbox) -> None:
    shown = docker("inspect", "--format", "{{json .HostConfig}}", server.container(sandbox))
    assert "/dev/fuse" not in shown and "SYS_ADMIN" not in shown and "docker.sock" not in shown
    with pytest.raises(CommandExitException):
        sandbox.commands.run("sudo test -e /dev/fuse")


# ---- commands -----------------------------------------------------------------------------


def test_commands_give_output_and_exit_code(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run("echo why >&2; exit 7")
    assert (failed.value.exit_code, failed.value.stderr) == (7, "why\n")
    with pytest.raises(CommandExitException) as missing:
        sandbox.commands.run("no-such-program")
    assert missing.value.exit_code == 127


def test_command_runs_as_user_at_home(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("whoami; pwd; echo $HOME").stdout.split() == ["user", "/home/user", "/home/user"]
    assert sandbox.commands.run("whoami", user="root").stdout == "root\n"
    assert sandbox.commands.run("sudo whoami").stdout == "root\n"
    assert sandbox.commands.run("pwd", cwd="/tmp").stdout == "/tmp\n"
    with pytest.raises(InvalidArgumentException, match="'/nowhere' does not exist"):
        sandbox.commands.run("true", cwd="/nowhere")


def test_tools_of_the_base_image(sandbox: Sandbox) -> None:
    tools = "python3 python node npm git curl sudo tput realpath ln s3fs rclone"
    sandbox.commands.run(f"for tool in {tools}; do command -v $tool || exit 1; done")
    assert sandbox.commands.run("TERM=xterm-256color tput colors").stdout == "256\n"
    sandbox.commands.run("ping -c 1 -W 2 127.0.0.1")


def test_output_arrives_while_the_command_runs(sandbox: Sandbox) -> None:
    arrived: list[tuple[float, str]] = []
    start = time.monotonic()
    sandbox.commands.run(
        "echo one; sleep 2; echo two", on_stdout=lambda text: arrived.append((time.monotonic() - start, text))
    )
    assert [text for _, text in arrived] == ["one\n", "two\n"]
    assert arrived[0][0] < 1.5 < arrived[1][0]


def test_connect_to_a_running_command(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("read line; echo got $line", background=True, stdin=True)
    results: list[str] = []
    other = sandbox.commands.connect(handle.pid)
    thread = threading.Thread(target=lambda: results.append(other.wait().stdout))
    thread.start()
    sandbox.commands.send_stdin(handle.pid, "it\n")
    assert handle.wait().stdout == "got it\n"
    thread.join(10)
    assert results == ["got it\n"]


def test_no_zombies(sandbox: Sandbox) -> None:
    sandbox.commands.run("for i in $(seq 50); do (sleep 0.01 &) ; done; sleep 0.5")
    assert "Z" not in sandbox.commands.run("ps -eo stat=").stdout


# ---- files --------------------------------------------------------------------------------


def test_files_write_read_and_overwrite(sandbox: Sandbox) -> None:
    written = sandbox.files.write("notes/üñí.txt", "first")
    assert written.path == "/home/user/notes/üñí.txt"
    sandbox.files.write("notes/üñí.txt", "2")
    assert sandbox.files.read("/home/user/notes/üñí.txt") == "2"
    assert sandbox.commands.run("stat -c %U:%G notes notes/*").stdout == "user:user\nuser:user\n"


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_files_keep_every_byte(sandbox: Sandbox, size: int) -> None:
    content = bytes((i * 7 + i // 251) % 256 for i in range(size))
    sandbox.files.write("/tmp/blob", io.BytesIO(content))
    assert bytes(sandbox.files.read("/tmp/blob", format="bytes")) == content
    assert b"".join(sandbox.files.read("/tmp/blob", format="stream")) == content


def test_files_write_many(sandbox: Sandbox) -> None:
    files = [{"path": f"/tmp/many/{n}", "data": str(n)} for n in range(20)]
    assert len(sandbox.files.write_files(files)) == 20
    assert sandbox.commands.run("cat /tmp/many/{0..19}").stdout == "".join(map(str, range(20)))


def test_files_list_info_move_remove(sandbox: Sandbox) -> None:
    assert sandbox.files.make_dir("tree/deep")
    assert not sandbox.files.make_dir("tree/deep")
    sandbox.files.write("tree/deep/leaf", "12345")
    assert [entry.name for entry in sandbox.files.list("tree")] == ["deep"]
    assert {entry.name for entry in sandbox.files.list("tree", depth=2)} == {"deep", "leaf"}
    info = sandbox.files.get_info("tree/deep/leaf")
    assert (info.type, info.size, info.owner, info.permissions) == (FileType.FILE, 5, "user", "-rw-r--r--")
    sandbox.files.rename("tree/deep/leaf", "tree/moved")
    assert sandbox.files.exists("tree/moved") and not sandbox.files.exists("tree/deep/leaf")
    sandbox.files.remove("tree")
    assert not sandbox.files.exists("tree")


def test_missing_files_are_named(sandbox: Sandbox) -> None:
    with pytest.raises(FileNotFoundException, match="/home/user/nothing"):
        sandbox.files.read("nothing")
    with pytest.raises(FileNotFoundException):
        sandbox.files.list("/nothing")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.write("/tmp", "a directory")

"""Commands, terminals, files, watching, hosts and the life of sandboxes with the oldest SDK."""

from __future__ import annotations

import importlib.metadata
import io
import os
import ssl
import uuid

import httpx
import pytest
from conftest import until
from e2b import (CommandExitException, FileType, InvalidArgumentException, NotFoundException, PtySize,
                 Sandbox, SandboxException, SandboxQuery, SandboxState, TimeoutException)
from e2b.sandbox.filesystem.watch_handle import FilesystemEventType


def trust() -> ssl.SSLContext:
    """What a program of the user's own trusts: the same as the SDK."""
    return ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])


def test_this_is_the_oldest_release() -> None:
    # The first row of the 2.x line in control-plane 9.
    assert importlib.metadata.version("e2b") == "2.0.0"


# ---- life -----------------------------------------------------------------------------------


def test_a_sandbox_is_listed_connected_to_extended_and_killed() -> None:
    mark = uuid.uuid4().hex
    sandbox = Sandbox.create("base", timeout=120, metadata={"mark": mark})
    assert sandbox.is_running()
    info = sandbox.get_info()
    assert (info.sandbox_id, info.metadata) == (sandbox.sandbox_id, {"mark": mark})
    assert (info.end_at - info.started_at).total_seconds() == 120
    query = SandboxQuery(metadata={"mark": mark}, state=[SandboxState.RUNNING])
    assert [s.sandbox_id for s in Sandbox.list(query=query).next_items()] == [sandbox.sandbox_id]
    # POST …/timeout, then GET …: how this release connects (control-plane 9). It sets the time anew.
    again = Sandbox.connect(sandbox.sandbox_id, timeout=600)
    assert again.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == sandbox.sandbox_id
    assert again.get_info().end_at > info.end_at
    sandbox.set_timeout(60)
    assert sandbox.get_info().end_at < info.end_at
    assert sandbox.kill()
    assert not sandbox.kill()
    assert not sandbox.is_running()
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id)


# ---- commands -------------------------------------------------------------------------------


def test_commands_give_output_code_and_environment(sandbox: Sandbox) -> None:
    run = sandbox.commands.run
    out: list[str] = []
    result = run("id -un; pwd; echo $FROM_CREATE $OWN; echo err >&2", envs={"OWN": "2"},
                 on_stdout=out.append)
    assert result.stdout == "".join(out) == "user\n/home/user\n1 2\n"
    assert (result.stderr, result.exit_code) == ("err\n", 0)
    assert run("pwd; id -un", cwd="/tmp", user="root").stdout == "/tmp\nroot\n"
    with pytest.raises(CommandExitException) as failure:
        run("echo why >&2; exit 3")
    assert (failure.value.exit_code, failure.value.stderr) == (3, "why\n")
    with pytest.raises(InvalidArgumentException):
        run("true", cwd="/nowhere")


def test_input_is_open_without_being_asked_for(sandbox: Sandbox) -> None:
    # This release sends no `stdin`: a pipe, open until the end (executor 4.3).
    handle = sandbox.commands.run("read line; echo got $line", background=True)
    assert [p.pid for p in sandbox.commands.list()] == [handle.pid]
    sandbox.commands.send_stdin(handle.pid, "it\n")
    assert handle.wait().stdout == "got it\n"
    with pytest.raises(NotFoundException):
        sandbox.commands.send_stdin(handle.pid, "late\n")


def test_commands_are_connected_to_killed_and_timed(sandbox: Sandbox) -> None:
    sleeper = sandbox.commands.run("sleep 100", background=True)
    again = sandbox.commands.connect(sleeper.pid)
    assert sandbox.commands.kill(sleeper.pid)
    with pytest.raises(CommandExitException):
        again.wait()
    # Reaped at once (executor 11.2).
    assert sandbox.commands.run(f"kill -0 {sleeper.pid} 2>&1 || echo gone").stdout.endswith("gone\n")
    assert not sandbox.commands.kill(999_999)
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(999_999)
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 10", timeout=1)
    until("the process is gone", lambda: sandbox.commands.list() == [])
    # Kept for a late client (executor 4.6).
    short = sandbox.commands.run("echo before", background=True)
    until("it has ended", lambda: sandbox.commands.list() == [])
    assert sandbox.commands.connect(short.pid).wait().exit_code == 0


# ---- terminals ------------------------------------------------------------------------------


def test_a_terminal_has_its_size_takes_input_and_ends(sandbox: Sandbox) -> None:
    shell = sandbox.pty.create(PtySize(rows=24, cols=80), envs={"OWN": "2"}, cwd="/tmp")
    sandbox.pty.resize(shell.pid, PtySize(rows=40, cols=123))
    sandbox.pty.send_stdin(shell.pid, b"echo [$(tput cols)-$TERM-$OWN-$PWD]; exit\n")
    seen = bytearray()
    assert shell.wait(on_pty=seen.extend).exit_code == 0
    assert b"[123-xterm-256color-2-/tmp]" in seen
    other = sandbox.pty.create(PtySize(rows=24, cols=80))
    assert other.kill()
    assert not sandbox.pty.kill(999_999)


# ---- files ----------------------------------------------------------------------------------


def test_files_are_written_read_listed_moved_and_removed(sandbox: Sandbox) -> None:
    files = sandbox.files
    written = files.write("a/b/ü ä.txt", "text")
    assert (written.path, written.name) == ("/home/user/a/b/ü ä.txt", "ü ä.txt")
    assert files.read("a/b/ü ä.txt") == "text"
    content = os.urandom(3_000_000)
    files.write("/tmp/binary", io.BytesIO(content))
    assert bytes(files.read("/tmp/binary", format="bytes")) == content
    assert b"".join(files.read("/tmp/binary", format="stream")) == content
    assert len(files.write_files([{"path": f"many/{n}", "data": str(n)} for n in range(5)])) == 5
    assert [e.path for e in files.list("a", depth=2)] == ["/home/user/a/b", "/home/user/a/b/ü ä.txt"]
    entry = files.get_info("a/b/ü ä.txt")
    assert (entry.type, entry.size, entry.owner, entry.permissions) == (
        FileType.FILE, 4, "user", "-rw-r--r--")
    sandbox.commands.run("ln -s b a/link")
    link = next(e for e in files.list("a") if e.name == "link")
    assert link.symlink_target == "/home/user/a/b"
    assert files.rename("a/b/ü ä.txt", "moved").path == "/home/user/moved"
    assert files.exists("moved") and not files.exists("a/b/ü ä.txt")
    assert files.make_dir("new") and not files.make_dir("new")
    files.remove("moved")
    with pytest.raises(NotFoundException):
        files.read("moved")
    with pytest.raises(InvalidArgumentException):
        files.write("/tmp", "a directory")
    files.write("/root/as-root", "r", user="root")
    assert sandbox.commands.run("stat -c %U /root/as-root", user="root").stdout == "root\n"


def test_signed_urls_work_alone(sandbox: Sandbox) -> None:
    sandbox.files.write("signed.txt", "signed")
    verify = trust()
    assert httpx.get(sandbox.download_url("signed.txt"), verify=verify).text == "signed"
    answer = httpx.post(sandbox.upload_url("up.txt"), files={"file": b"up"}, verify=verify)
    assert answer.status_code == 200
    assert sandbox.files.read("up.txt") == "up"
    late = sandbox.download_url("signed.txt", use_signature_expiration=-120)
    assert httpx.get(late, verify=verify).status_code == 401


def test_a_watched_directory_tells_what_happened(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("watched")
    handle = sandbox.files.watch_dir("watched", recursive=True)
    sandbox.files.write("watched/a.txt", "1")
    # At once, and exactly these (executor 5.4, 11.26).
    assert [(e.name, e.type) for e in handle.get_new_events()] == [
        ("a.txt", FilesystemEventType.CREATE), ("a.txt", FilesystemEventType.CHMOD),
        ("a.txt", FilesystemEventType.WRITE)]
    sandbox.files.write("watched/deep/b.txt", "2")
    assert "deep/b.txt" in [e.name for e in handle.get_new_events()]
    sandbox.files.rename("watched/a.txt", "watched/c.txt")
    assert [(e.name, e.type) for e in handle.get_new_events()] == [
        ("a.txt", FilesystemEventType.RENAME), ("c.txt", FilesystemEventType.CREATE)]
    handle.stop()
    with pytest.raises(SandboxException):
        handle.get_new_events()
    with pytest.raises(NotFoundException):
        sandbox.files.watch_dir("nothing")


# ---- hosts ----------------------------------------------------------------------------------


def test_a_host_leads_into_the_sandbox_by_tls(sandbox: Sandbox) -> None:
    domain = os.environ["E2B_DOMAIN"]
    host = sandbox.get_host(8000)
    assert host == f"8000-{sandbox.sandbox_id}.{domain}"
    sandbox.files.write("www/index.html", "page\n")
    server = sandbox.commands.run("python3 -m http.server 8000 --bind 127.0.0.1 -d www",
                                  background=True, timeout=0)

    def page() -> httpx.Response:
        return httpx.get(f"https://{host}/", verify=trust())

    until("the server listens", lambda: page().status_code == 200)
    assert page().text == "page\n"
    assert server.kill()
    until("the port is closed", lambda: page().status_code == 502)
    assert page().json()["message"] == "The sandbox is running but port is not open"

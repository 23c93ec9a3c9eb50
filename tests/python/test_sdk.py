"""The official Python SDK, unmodified, sync and async: what its users do first."""

from __future__ import annotations

import time
import uuid

import httpx
import pytest
from conftest import Server, until
from e2b import (AsyncSandbox, CommandExitException, InvalidArgumentException, NotFoundException,
                 Sandbox, SandboxQuery, SandboxState, TimeoutException)


def test_a_command_runs_as_user_at_home_with_its_output(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("id -un; pwd; echo err >&2")
    assert (result.stdout, result.stderr) == ("user\n/home/user\n", "err\n")
    assert result.exit_code == 0


def test_a_failing_command_raises_with_its_code(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as failure:
        sandbox.commands.run("echo out; exit 3")
    assert (failure.value.exit_code, failure.value.stdout) == (3, "out\n")


def test_environment_user_and_directory_of_a_command(server: Server) -> None:
    sandbox = server.create(envs={"FROM_CREATE": "1"})
    try:
        run = sandbox.commands.run
        assert run("echo $FROM_CREATE $OWN", envs={"OWN": "2"}).stdout == "1 2\n"
        # Per-command variables do not leak into the next (executor 11.9).
        assert run("echo $FROM_CREATE $OWN").stdout == "1\n"
        assert run("id -un; echo $HOME", user="root").stdout == "root\n/root\n"
        assert run("pwd", cwd="/tmp").stdout == "/tmp\n"
        with pytest.raises(InvalidArgumentException):
            run("pwd", cwd="/nowhere")
        assert run("echo $E2B_SANDBOX_ID").stdout.strip() == sandbox.sandbox_id
        assert run("sudo id -u").stdout == "0\n"
    finally:
        sandbox.kill()


def test_a_background_command_takes_input_is_listed_and_killed(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    assert [p.pid for p in sandbox.commands.list()] == [handle.pid]
    sandbox.commands.send_stdin(handle.pid, "hello\n")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "hello\n"

    sleeper = sandbox.commands.run("sleep 100", background=True)
    again = sandbox.commands.connect(sleeper.pid)
    assert sandbox.commands.kill(sleeper.pid)
    with pytest.raises(CommandExitException):
        again.wait()
    # Reaped at once: the pid is free for the very next command (executor 11.2).
    assert sandbox.commands.run(f"kill -0 {sleeper.pid} 2>&1 || echo gone").stdout.endswith("gone\n")
    assert not sandbox.commands.kill(999_999)
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(999_999)


def test_a_deadline_ends_the_command(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 10", timeout=1)
    until("the process is gone", lambda: sandbox.commands.list() == [])


def test_bytes_that_split_a_character_arrive_whole(sandbox: Sandbox) -> None:
    # executor 11.4
    text = sandbox.commands.run("head -c 8191 /dev/zero | tr '\\0' a; printf '\\342'").stdout
    assert text == "a" * 8191 + "�"


def test_files_are_written_read_listed_moved_and_removed(sandbox: Sandbox) -> None:
    files = sandbox.files
    info = files.write("a/b/c.txt", "text")
    assert info.path == "/home/user/a/b/c.txt"
    assert files.read("a/b/c.txt") == "text"
    content = bytes(range(256)) * 5000
    files.write("/tmp/binary", content)
    assert bytes(files.read("/tmp/binary", format="bytes")) == content
    assert [e.path for e in files.list("a", depth=2)] == ["/home/user/a/b", "/home/user/a/b/c.txt"]
    entry = files.get_info("a/b/c.txt")
    assert (entry.size, entry.owner, entry.permissions) == (4, "user", "-rw-r--r--")
    files.rename("a/b/c.txt", "moved.txt")
    assert files.exists("moved.txt") and not files.exists("a/b/c.txt")
    assert files.make_dir("new") and not files.make_dir("new")
    files.remove("moved.txt")
    files.remove("moved.txt")
    with pytest.raises(NotFoundException):
        files.read("moved.txt")
    written = files.write_files([{"path": "one", "data": "1"}, {"path": "two/three", "data": b"3"}])
    assert [w.path for w in written] == ["/home/user/one", "/home/user/two/three"]


def test_signed_urls_work_without_headers(sandbox: Sandbox) -> None:
    sandbox.files.write("signed.txt", "signed")
    assert httpx.get(sandbox.download_url("signed.txt")).text == "signed"
    upload = sandbox.upload_url("up.txt")
    assert httpx.post(upload, files={"file": ("up.txt", b"up")}).status_code == 200
    assert sandbox.files.read("up.txt") == "up"
    expired = sandbox.download_url("signed.txt", use_signature_expiration=-120)
    answer = httpx.get(expired)
    # executor 3.3
    assert (answer.status_code, answer.json()) == (
        401, {"code": 401, "message": "signature is already expired"})


def test_the_token_is_demanded(server: Server, sandbox: Sandbox) -> None:
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    answer = httpx.post(f"{server.sandbox_url}/process.Process/List", json={}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, 401)
    wrong = headers | {"X-Access-Token": "wrong"}
    assert httpx.get(f"{server.sandbox_url}/files?path=x", headers=wrong).status_code == 401
    assert httpx.get(f"{server.sandbox_url}/health", headers=headers).status_code == 204


def test_control_routes_are_not_for_the_public(server: Server, sandbox: Sandbox) -> None:
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    for path in ("/init", "/init/", "//init", "/files/../init", "/%69nit",
                 "/sandyard/tunnel/22", "/sandyard/../sandyard/tunnel/22"):
        with httpx.Client() as client:
            request = client.build_request("POST", f"{server.sandbox_url}{path}", headers=headers)
            # As sent, not as the client would tidy it up.
            request.url = request.url.copy_with(raw_path=path.encode())
            answer = client.send(request)
        assert answer.status_code == 404, path
        assert "reserved for the E2B control plane" in answer.text, path
    control = headers | {"E2b-Sandbox-Port": "49982"}
    assert httpx.get(f"{server.sandbox_url}/", headers=control).status_code == 502


def test_life_cycle_calls(server: Server) -> None:
    mark = uuid.uuid4().hex
    sandbox = server.create(metadata={"mark": mark, "with space": "a b&c=d"}, timeout=120)
    options = server.options()
    container = server.container(sandbox)
    try:
        info = sandbox.get_info()
        assert (info.name, info.metadata["mark"], info.state) == (
            "base", mark, SandboxState.RUNNING)
        assert (info.end_at - info.started_at).total_seconds() == 120
        query = SandboxQuery(metadata={"with space": "a b&c=d", "mark": mark})
        found = Sandbox.list(query=query, **options).next_items()
        assert [s.sandbox_id for s in found] == [sandbox.sandbox_id]
        assert Sandbox.list(query=SandboxQuery(metadata={"mark": "x"}), **options).next_items() == []
        # Connecting with a shorter timeout changes nothing (control-plane 8.1).
        again = Sandbox.connect(sandbox.sandbox_id, timeout=10, **options)
        assert again.get_info().end_at == info.end_at
        assert again.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == sandbox.sandbox_id
        sandbox.set_timeout(600)
        assert sandbox.get_info().end_at > info.end_at
        assert sandbox.is_running()
    finally:
        assert sandbox.kill()
    assert not sandbox.is_running()
    assert not sandbox.kill()
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id, **options)
    assert container not in server.containers()


def test_a_sandbox_expires(server: Server) -> None:
    sandbox = server.create(timeout=600)
    container = server.container(sandbox)
    sandbox.set_timeout(0)
    until("it is gone", lambda: not sandbox.is_running(), 10)
    until("its container is gone", lambda: container not in server.containers(), 10)


def test_ports_on_loopback_are_reached_and_closed_ones_are_named(
        server: Server, sandbox: Sandbox) -> None:
    sandbox.commands.run("mkdir -p www && echo page > www/index.html")
    for port, address in ((8001, "127.0.0.1"), (8002, "0.0.0.0"), (8003, "::1")):
        sandbox.commands.run(f"python3 -m http.server {port} --bind {address} -d www",
                             background=True)
        host = sandbox.get_host(port)
        assert host.startswith(f"{port}-{sandbox.sandbox_id}.")

        def page() -> httpx.Response:
            return httpx.get(server.sandbox_url, headers={"Host": host})

        until(f"port {port} answers", lambda: page().status_code == 200)
        assert page().text == "page\n"
    closed = httpx.get(server.sandbox_url, headers={"Host": sandbox.get_host(9999)})
    # control-plane 5.6
    assert (closed.status_code, closed.json()) == (502, {
        "sandboxId": sandbox.sandbox_id, "port": 9999, "code": 502,
        "message": "The sandbox is running but port is not open"})
    unknown = httpx.get(server.sandbox_url, headers={"Host": "8000-inope.sbx.localhost"})
    assert unknown.json()["message"] == "The sandbox was not found"


def test_a_dead_container_is_a_dead_sandbox_within_two_seconds(server: Server) -> None:
    from conftest import docker

    sandbox = server.create()
    container = server.container(sandbox)
    docker("kill", container)
    until("it is not listed", lambda: sandbox.sandbox_id not in [
        s.sandbox_id for s in Sandbox.list(**server.options()).next_items()], 2)
    assert not sandbox.is_running()
    until("its container is removed", lambda: container not in server.containers())


async def test_the_async_client_does_the_same(server: Server) -> None:
    sandbox = await AsyncSandbox.create("base", **server.options())
    try:
        lines: list[str] = []
        result = await sandbox.commands.run("for i in 1 2 3; do echo $i; done",
                                            on_stdout=lines.append)
        assert result.stdout == "1\n2\n3\n" and "".join(lines) == result.stdout
        await sandbox.files.write("a.txt", "async")
        assert await sandbox.files.read("a.txt") == "async"
        handle = await sandbox.commands.run("sleep 100", background=True)
        assert await handle.kill()
    finally:
        assert await sandbox.kill()


def test_large_files_and_output_come_through_whole(sandbox: Sandbox) -> None:
    import hashlib
    import os

    content = os.urandom(20 << 20)
    sandbox.files.write("big", content)
    digest = sandbox.commands.run("sha256sum big").stdout.split()[0]
    assert digest == hashlib.sha256(content).hexdigest()
    assert bytes(sandbox.files.read("big", format="bytes")) == content
    begun = time.monotonic()
    text = sandbox.commands.run("head -c 5000000 /dev/zero | tr '\\0' x").stdout
    assert len(text) == 5_000_000, f"after {time.monotonic() - begun:.1f} s"

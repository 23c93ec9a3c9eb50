"""A pause that keeps the memory: programs, ports, terminals, watchers and streams go on as if nothing had been
(control-plane 3.4, 8.13)."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator

import httpx
import pytest
from conftest import Server, until
from e2b import AsyncSandbox, CommandHandle, FilesystemEventType, PtySize, Sandbox, SandboxState
from e2b.exceptions import SandboxNotFoundException
from lifecycle import STARTED, ask, serve_counter

# Holds what only memory has: a number nobody wrote anywhere, and a line that was half read.
STATEFUL = """
import os, secrets, sys
secret = secrets.token_hex(8)
print(f"secret {secret} {os.getpid()}", flush=True)
for line in sys.stdin:
    print(f"again {secret} {os.getpid()} {line.strip()}", flush=True)
"""


@pytest.fixture
def sandbox(server: Server) -> Iterator[Sandbox]:
    made = server.create(timeout=600, envs={"FROM_CREATE": "yes"})
    yield made
    made.kill()


def pause_and_connect(server: Server, sandbox: Sandbox) -> Sandbox:
    assert sandbox.pause()
    assert Sandbox.get_info(sandbox.sandbox_id, **server.options()).state == SandboxState.PAUSED
    return Sandbox.connect(sandbox.sandbox_id, timeout=600, **server.options())


def test_a_program_goes_on_with_its_memory_and_its_port(server: Server, sandbox: Sandbox) -> None:
    pid = serve_counter(sandbox)
    assert ask(server, sandbox).text == f"1 {pid}"
    boot = sandbox.commands.run(STARTED).stdout
    for count in (2, 3):
        again = pause_and_connect(server, sandbox)
        assert ask(server, again).text == f"{count} {pid}"
    assert pid in {p.pid for p in again.commands.list()}
    assert again.commands.run(STARTED).stdout == boot
    # The object from before the pause is as good as the new one.
    assert sandbox.commands.run("echo $FROM_CREATE").stdout == "yes\n"
    assert again._envd_access_token == sandbox._envd_access_token


def test_a_background_command_is_listed_joined_fed_and_killed(server: Server, sandbox: Sandbox) -> None:
    sandbox.files.write("stateful.py", STATEFUL)
    handle = sandbox.commands.run("python3 stateful.py", background=True, stdin=True, timeout=0)
    first = next(out for out, _, _ in handle if out).split()
    handle.disconnect()
    again = pause_and_connect(server, sandbox)
    assert [p.pid for p in again.commands.list()] == [handle.pid]
    joined = again.commands.connect(handle.pid, timeout=0)
    again.commands.send_stdin(handle.pid, "after\n")
    assert next(out for out, _, _ in joined if out).split() == ["again", *first[1:], "after"]
    assert again.commands.kill(handle.pid)
    until("it is gone", lambda: again.commands.list() == [])


def test_a_stream_that_is_held_over_a_pause_goes_on(server: Server, sandbox: Sandbox) -> None:
    """The client neither hears of an end nor misses a line: the connection is the server's to keep."""
    heard: list[str] = []
    outcome: list[object] = []
    handle = sandbox.commands.run("while read line; do echo got $line; done; exit 7", background=True, stdin=True,
                                  timeout=0)

    def listen() -> None:
        try:
            handle.wait(on_stdout=heard.append)
        except Exception as error:
            outcome.append(error)

    listener = threading.Thread(target=listen)
    listener.start()
    sandbox.commands.send_stdin(handle.pid, "before\n")
    until("a line is heard", lambda: heard == ["got before\n"])
    again = pause_and_connect(server, sandbox)
    again.commands.send_stdin(handle.pid, "after\n")
    until("the second line is heard", lambda: "".join(heard) == "got before\ngot after\n" or outcome)
    again.commands.close_stdin(handle.pid)
    listener.join(20)
    assert not listener.is_alive() and getattr(outcome[0], "exit_code", None) == 7, outcome


def read_until(shell: CommandHandle, wanted: bytes) -> bytes:
    seen = b""
    for _, _, data in shell:
        seen += data or b""
        if wanted in seen:
            break
    assert wanted in seen, f"the terminal said {seen!r}"
    return seen


def test_a_terminal_keeps_its_shell(server: Server, sandbox: Sandbox) -> None:
    shell = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0)
    sandbox.pty.send_stdin(shell.pid, b"kept=$((6 * 7)); cd /tmp; echo [set-$kept]\n")
    read_until(shell, b"[set-42]")
    shell.disconnect()
    again = pause_and_connect(server, sandbox)
    joined = again.pty.connect(shell.pid)
    again.pty.resize(shell.pid, PtySize(rows=30, cols=101))
    again.pty.send_stdin(shell.pid, b"echo [is-$kept-$PWD-$(tput cols)]\n")
    read_until(joined, b"[is-42-/tmp-101]")
    assert joined.kill()
    joined.disconnect()


def test_a_watcher_tells_of_what_happens_after_it(server: Server, sandbox: Sandbox) -> None:
    sandbox.files.make_dir("watched")
    watch = sandbox.files.watch_dir("watched")
    sandbox.files.write("watched/before", "1")
    pause_and_connect(server, sandbox).files.write("watched/after", "2")
    names: set[str] = set()

    def told() -> bool:
        names.update(event.name for event in watch.get_new_events() if event.type == FilesystemEventType.CREATE)
        return {"before", "after"} <= names

    until("both files are told", told)
    watch.stop()


async def test_a_watch_stream_goes_on(server: Server) -> None:
    sandbox = await AsyncSandbox.create("base", **server.options())
    try:
        await sandbox.files.make_dir("watched")
        names: list[str] = []
        handle = await sandbox.files.watch_dir("watched", on_event=lambda event: names.append(event.name), timeout=0)
        assert await sandbox.pause()
        await sandbox.connect(timeout=300)
        await sandbox.files.write("watched/after", "2")
        for _ in range(1000):
            if "after" in names:
                break
            # The stream is read by this loop; every call gives it a turn.
            await sandbox.files.exists("watched/after")
        assert "after" in names
        await handle.stop()
    finally:
        await sandbox.kill()


def test_files_open_ones_too(server: Server, sandbox: Sandbox) -> None:
    sandbox.files.write("kept.txt", "kept")
    sandbox.commands.run("echo x > /dev/shm/in-memory; sudo touch /etc/mine; exec 9> held; true")
    holder = sandbox.commands.run("exec 9> held; echo one >&9; read line; echo two >&9", background=True, stdin=True)
    until("it holds the file", lambda: sandbox.files.exists("held") and sandbox.files.read("held") == "one\n")
    again = pause_and_connect(server, sandbox)
    again.commands.send_stdin(holder.pid, "go\n")
    until("it wrote on", lambda: again.files.read("held") == "one\ntwo\n")
    assert again.files.read("kept.txt") == "kept"
    assert again.commands.run("cat /dev/shm/in-memory; ls /etc/mine").stdout == "x\n/etc/mine\n"


def test_the_clock_is_right_afterwards(server: Server, sandbox: Sandbox) -> None:
    again = pause_and_connect(server, sandbox)
    inside = float(again.commands.run("date +%s.%N").stdout)
    assert abs(inside - datetime.datetime.now().timestamp()) < 5


def test_a_paused_one_uses_no_processor_and_is_not_running(server: Server, sandbox: Sandbox) -> None:
    sandbox.commands.run("while :; do :; done", background=True, timeout=0)
    assert sandbox.pause()
    assert not sandbox.is_running()
    # A health check wakes nobody (control-plane 5.6).
    assert Sandbox.get_info(sandbox.sandbox_id, **server.options()).state == SandboxState.PAUSED
    with pytest.raises(Exception) as refused:
        sandbox.commands.run("true")
    assert "not found" in str(refused.value)


def test_what_the_sdk_makes_of_every_answer(server: Server, sandbox: Sandbox) -> None:
    options = server.options()
    assert sandbox.pause() and not sandbox.pause()
    assert not Sandbox.pause(sandbox.sandbox_id, **options)
    again = sandbox.connect(timeout=90)
    assert again.is_running() and sandbox.is_running()
    assert Sandbox.pause(sandbox.sandbox_id, mode="full", **options)
    # The deprecated word for it.
    Sandbox.connect(sandbox.sandbox_id, **options)
    assert sandbox.beta_pause(keep_memory=True)
    assert Sandbox.kill(sandbox.sandbox_id, **options)
    assert not Sandbox.kill(sandbox.sandbox_id, **options)
    for call in (Sandbox.pause, Sandbox.connect, Sandbox.get_info):
        with pytest.raises(SandboxNotFoundException):
            call(sandbox.sandbox_id, **options)


def test_a_strict_pause_of_a_healthy_one(server: Server, sandbox: Sandbox) -> None:
    assert sandbox.pause(strict=True)
    assert Sandbox.connect(sandbox.sandbox_id, **server.options()).commands.run("echo on").stdout == "on\n"


def test_the_token_is_needed_and_the_same_after_it(server: Server, sandbox: Sandbox) -> None:
    """executor contract, 5: after a resume the same token works and none is still refused."""
    pause_and_connect(server, sandbox)
    url = f"{server.sandbox_url}/files?path=/etc/hostname"
    routing = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    assert httpx.get(url, headers=routing).status_code == 401
    token = {"X-Access-Token": sandbox._envd_access_token or ""}
    assert httpx.get(url, headers=routing | token).status_code == 200


def test_fifty_pauses(server: Server, sandbox: Sandbox) -> None:
    pid = serve_counter(sandbox)
    for count in range(1, 51):
        assert sandbox.pause()
        sandbox.connect(timeout=600)
        assert ask(server, sandbox).text == f"{count} {pid}"

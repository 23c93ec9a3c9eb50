"""`sandbox.commands` of the official Python SDK: every method, with the synchronous and the asynchronous client.

One sandbox for the module. Tests leave no process in it, which the fixture looks after.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import Server, module_sandbox, until
from e2b import (AsyncSandbox, CommandExitException, InvalidArgumentException, NotFoundException,
                 Sandbox, TimeoutException)
from e2b.exceptions import AuthenticationException, SandboxException

UNKNOWN = 999_999


shared = module_sandbox(envs={"GLOBAL": "global"})


def test_run_gives_output_of_both_streams_and_the_exit_code(box: Sandbox) -> None:
    """executor 4.3, 4.4: stdout and stderr apart, the end after both; 11 (10): at home as user."""
    result = box.commands.run("id -un; pwd; echo err >&2")
    assert (result.stdout, result.stderr) == ("user\n/home/user\n", "err\n")
    assert (result.exit_code, result.error) == (0, None)


def test_run_calls_back_with_output_as_it_comes(box: Sandbox) -> None:
    """executor 2.2: every message is flushed at once, so the first line is there before the second."""
    out: list[tuple[float, str]] = []
    err: list[str] = []
    box.commands.run("echo one; echo e >&2; sleep 0.5; echo two", on_stderr=err.append,
                     on_stdout=lambda text: out.append((time.monotonic(), text)))
    assert [text for _, text in out] == ["one\n", "two\n"]
    assert out[1][0] - out[0][0] > 0.4
    assert err == ["e\n"]


def test_run_raises_with_exit_code_and_output(box: Sandbox) -> None:
    """executor 4.4: exit N with its status and error."""
    with pytest.raises(CommandExitException) as failure:
        box.commands.run("echo out; echo err >&2; exit 3")
    error = failure.value
    assert (error.exit_code, error.stdout, error.stderr, error.error) == (
        3, "out\n", "err\n", "exit status 3")


def test_a_missing_command_is_an_exit_code(box: Sandbox) -> None:
    """executor 4.1: 127 and a text on stderr, no error of the call."""
    with pytest.raises(CommandExitException) as failure:
        box.commands.run("no-such-command")
    assert failure.value.exit_code == 127
    assert "no-such-command" in failure.value.stderr


def test_environment_of_a_command(box: Sandbox) -> None:
    """executor 4.1, 11 (9): global variables stay, those of one command do not leak; no TERM, no LANG."""
    run = box.commands.run
    assert run("echo $GLOBAL $OWN", envs={"OWN": "own"}).stdout == "global own\n"
    assert run("echo $GLOBAL $OWN", envs={"GLOBAL": "mine"}).stdout == "mine\n"
    assert run("echo $GLOBAL $OWN").stdout == "global\n"
    assert run("echo $HOME $USER $LOGNAME [$TERM] [$LANG]").stdout == "/home/user user user [] []\n" \
        or run("echo [$TERM]").stdout == "[dumb]\n"
    # `sudo` passes none of it on, and asks for no password.
    assert run("sudo sh -c 'id -u; echo $OWN'", envs={"OWN": "own"}).stdout == "0\n\n"


def test_users_with_all_their_groups(box: Sandbox) -> None:
    """executor 3.1, 4.2: by name, with primary and supplementary groups, also of users made later."""
    assert box.commands.run("id -un; echo $HOME", user="root").stdout == "root\n/root\n"
    assert "sudo" in box.commands.run("id -Gn").stdout.split()
    box.commands.run("groupadd --force late; id -u lately || useradd -m -G late,games lately", user="root")
    assert box.commands.run("id -Gn", user="lately").stdout == "lately games late\n"
    with pytest.raises(AuthenticationException, match="invalid username: 'stranger'"):
        box.commands.run("true", user="stranger")


def test_working_directories(box: Sandbox) -> None:
    """executor 4.2, 11 (8): relative to home, `~`; missing, no directory, not the user's: before any start."""
    run = box.commands.run
    run("mkdir -p some/dir locked; sudo chown root locked; sudo chmod 700 locked")
    assert run("pwd", cwd="/tmp").stdout == "/tmp\n"
    assert run("pwd", cwd="some/dir").stdout == "/home/user/some/dir\n"
    assert run("pwd", cwd="~/some").stdout == "/home/user/some\n"
    with pytest.raises(InvalidArgumentException, match="cwd '/nowhere' does not exist"):
        run("pwd", cwd="/nowhere")
    for cwd in ("/etc/passwd", "locked", "~root", "/" + "x" * 5000):
        with pytest.raises(InvalidArgumentException):
            run("pwd", cwd=cwd)


def test_bytes_pass_untouched_and_in_order(box: Sandbox) -> None:
    """executor 11 (4): a broken character is exactly one replacement; 4.5: nothing is lost."""
    text = box.commands.run("head -c 8191 /dev/zero | tr '\\0' a; printf '\\342'").stdout
    assert text == "a" * 8191 + "\ufffd"
    numbers = box.commands.run("seq 500000").stdout
    assert numbers == "".join(f"{n}\n" for n in range(1, 500_001))


def test_stdin_is_empty_unless_asked_for(box: Sandbox) -> None:
    """executor 4.3, 11 (6): /dev/null, so that `read` fails at once."""
    with pytest.raises(CommandExitException) as failure:
        box.commands.run("read -p question line")
    assert failure.value.exit_code == 1


def test_a_pipe_held_by_a_grandchild_keeps_the_command(box: Sandbox) -> None:
    """executor 4.4: the end comes with the end of all output."""
    begun = time.monotonic()
    assert box.commands.run("sleep 1 & echo hi").stdout == "hi\n"
    assert time.monotonic() - begun > 0.9


def test_a_timeout_ends_the_command(box: Sandbox) -> None:
    """executor 11 (3), 4.7: deadline_exceeded for the caller, iterating too; the process is killed."""
    for background in (False, True):
        with pytest.raises(TimeoutException):
            handle = box.commands.run("exec sleep 30", timeout=0.5, background=background)
            list(handle)
    until("the processes are gone", lambda: box.commands.list() == [])


def test_other_listeners_hear_the_kill_at_the_deadline(box: Sandbox) -> None:
    """executor 4.7: the caller's deadline is an end, `signal: killed`, for everybody else."""
    handle = box.commands.run("exec sleep 30", timeout=1, background=True)
    other = box.commands.connect(handle.pid)
    with pytest.raises(CommandExitException) as failure:
        other.wait()
    assert (failure.value.exit_code, failure.value.error) == (-1, "signal: killed")
    with pytest.raises(TimeoutException):
        handle.wait()


def test_list_echoes_what_was_started(box: Sandbox) -> None:
    """executor 4.7, 11 (12): one entry for one start, as received; gone with its end."""
    handle = box.commands.run("sleep 30 && true", background=True, envs={"A": "1"}, cwd="/tmp")
    [info] = box.commands.list()
    assert (info.pid, info.cmd, info.args) == (handle.pid, "/bin/bash", ["-l", "-c", "sleep 30 && true"])
    assert (info.envs, info.cwd, info.tag) == ({"A": "1"}, "/tmp", None)
    assert handle.kill()
    with pytest.raises(CommandExitException):
        handle.wait()
    assert box.commands.list() == []


def test_kill_reaps_at_once(box: Sandbox) -> None:
    """executor 4.7, 11 (2), (11), (15): `kill -0` fails in the next command, though a grandchild lives."""
    handle = box.commands.run("sleep 30 && echo done", background=True)
    until("the grandchild runs", lambda: box.commands.run("pgrep -x sleep || true").stdout != "")
    assert box.commands.kill(handle.pid)
    with pytest.raises(CommandExitException) as failure:
        handle.wait()
    assert (failure.value.exit_code, failure.value.error) == (-1, "signal: killed")
    assert box.commands.list() == []
    assert box.commands.run(f"kill -0 {handle.pid} 2>/dev/null || echo gone").stdout == "gone\n"
    assert not box.commands.kill(handle.pid)
    assert not box.commands.kill(UNKNOWN)
    box.commands.run("pkill -x sleep")


def test_connect_hears_what_comes_later_and_the_end(box: Sandbox) -> None:
    """executor 4.5, 4.6: live subscribers without replay; 2.7: a disconnect leaves the process."""
    first = box.commands.run("echo early; read line; echo late $line", background=True, stdin=True)
    assert next(iter(first)) == ("early\n", None, None)
    second = box.commands.connect(first.pid)
    first.disconnect()
    second.send_stdin("word\n")
    assert second.wait().stdout == "late word\n"
    # Its end is kept for a while.
    assert box.commands.connect(first.pid).wait().exit_code == 0
    with pytest.raises(NotFoundException, match=f"process with pid {UNKNOWN} not found"):
        box.commands.connect(UNKNOWN)


def test_stdin_is_written_in_order_and_closed(box: Sandbox) -> None:
    """executor 4.8, 11 (7): no newline needed, empty input is fine, `close_stdin` is the end."""
    handle = box.commands.run("cat", background=True, stdin=True)
    output = iter(handle)
    handle.send_stdin("first")
    assert next(output)[0] == "first"
    handle.send_stdin("")
    handle.send_stdin(b"\xc3\xa4")
    assert next(output)[0] == "\u00e4"
    handle.close_stdin()
    assert handle.wait().stdout == "first\u00e4"
    for call in (lambda: handle.send_stdin("late"), handle.close_stdin):
        with pytest.raises(NotFoundException):
            call()


def test_stdin_that_is_not_there(box: Sandbox) -> None:
    """executor 4.8: stdin disabled or closed is `internal`; closing again is nothing."""
    handle = box.commands.run("sleep 30", background=True)
    with pytest.raises(SandboxException, match="(?i)internal"):
        handle.send_stdin("x")
    handle.close_stdin()
    handle.kill()
    closed = box.commands.run("exec 0<&-; sleep 30", background=True, stdin=True)
    closed.close_stdin()
    closed.close_stdin()
    with pytest.raises(SandboxException, match="(?i)internal"):
        closed.send_stdin("x")
    closed.kill()


def test_stream_input_is_written_as_it_is_made(box: Sandbox) -> None:
    """executor 2.2, 4.8: each message is processed as it arrives; the process's input stays open."""
    handle = box.commands.run("cat", background=True, stdin=True)
    output = iter(handle)

    def pieces() -> Iterator[str | bytes]:
        for piece in ("one", b"two", "three"):
            yield piece
            # Deadlocks unless the piece is through before the next one is asked for.
            assert next(output)[0] == (piece if isinstance(piece, str) else piece.decode())

    box.commands.stream_input(handle.pid, pieces())
    handle.send_stdin("four")
    handle.close_stdin()
    assert handle.wait().stdout == "onetwothreefour"
    with pytest.raises(NotFoundException):
        box.commands.stream_input(handle.pid, ["late"])


def test_a_client_that_stops_reading_an_endless_command_leaves_no_trouble(box: Sandbox) -> None:
    """executor 11 (13): cancel in the middle of `yes`; the process goes on until it is killed."""
    handle = box.commands.run("yes", background=True)
    next(iter(handle))
    handle.disconnect()
    assert [p.pid for p in box.commands.list()] == [handle.pid]
    assert box.commands.run("echo still").stdout == "still\n"
    assert box.commands.kill(handle.pid)


def test_many_commands_at_once(box: Sandbox) -> None:
    """executor 4.4: each has its own output and its own end."""
    with ThreadPoolExecutor(16) as pool:
        results = pool.map(lambda n: box.commands.run(f"echo {n}; exit 0"), range(64))
        assert [result.stdout for result in results] == [f"{n}\n" for n in range(64)]


def test_a_command_that_takes_all_memory_is_killed_alone(box: Sandbox) -> None:
    """executor 4.9: the command gets `signal: killed`, and the sandbox goes on."""
    sleeper = box.commands.run("sleep 60", background=True)
    scores = "cat /proc/1/oom_score_adj /proc/self/oom_score_adj"
    daemon, command = map(int, box.commands.run(scores).stdout.split())
    assert daemon < command == 100
    for _ in range(2):
        with pytest.raises(CommandExitException) as failure:
            box.commands.run("exec tail /dev/zero", timeout=60)
        assert (failure.value.exit_code, failure.value.error) == (-1, "signal: killed")
    assert [p.pid for p in box.commands.list()] == [sleeper.pid]
    assert box.commands.run("echo still").stdout == "still\n"
    assert sleeper.kill()


def test_requests_that_are_none(server: Server, box: Sandbox) -> None:
    """executor 2.1, 2.2, 4.7, through the proxy: codes of the contract, and nothing runs."""
    headers = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "49983",
               "X-Access-Token": box._envd_access_token or ""}
    stream = headers | {"Content-Type": "application/connect+json"}
    with httpx.Client(base_url=f"{server.sandbox_url}/process.Process", timeout=20) as http:
        for body in (b"\0\0\0", b"\0\xff\xff\xff\xff{}", b"\0\0\0\0\x01{"):
            answer = http.post("/Start", headers=stream, content=body)
            assert answer.status_code == 200
            assert b'"code":"invalid_argument"' in answer.content
        plain = headers | {"Content-Type": "text/plain"}
        assert http.post("/Start", headers=plain, content=b"{}").status_code == 415
        signal = {"process": {"pid": 1}, "signal": "SIGNAL_SIGINT"}
        answer = http.post("/SendSignal", headers=headers, json=signal)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert box.commands.list() == []


def test_the_executor_stays_small(server: Server, box: Sandbox) -> None:
    """executor 4.5: 50 streaming commands, within 9 MiB of memory."""
    handles = [box.commands.run("while sleep 0.1; do echo x; done", background=True) for _ in range(50)]
    for handle in handles:
        next(iter(handle))
    read = "awk '/VmRSS/ { print $2 }' /proc/1/status"
    assert int(box.commands.run(read).stdout) < 9 << 10
    assert all(handle.kill() for handle in handles)


async def test_async_run(abox: AsyncSandbox) -> None:
    """executor 4.3, 4.4: as above, with the asynchronous client."""
    out: list[str] = []
    result = await abox.commands.run("echo $GLOBAL; echo err >&2", on_stdout=out.append)
    assert (result.stdout, result.stderr, out) == ("global\n", "err\n", ["global\n"])
    with pytest.raises(CommandExitException) as failure:
        await abox.commands.run("exit 3")
    assert failure.value.exit_code == 3
    with pytest.raises(InvalidArgumentException):
        await abox.commands.run("pwd", cwd="/nowhere")
    with pytest.raises(TimeoutException):
        await abox.commands.run("exec sleep 30", timeout=0.5)


async def test_async_input_list_connect_and_kill(abox: AsyncSandbox) -> None:
    """executor 4.5 to 4.8: as above, with the asynchronous client."""
    handle = await abox.commands.run("cat", background=True, stdin=True)
    assert [p.pid for p in await abox.commands.list()] == [handle.pid]
    other = await abox.commands.connect(handle.pid)
    await handle.send_stdin("hello")
    await abox.commands.send_stdin(handle.pid, "")
    await abox.commands.close_stdin(handle.pid)
    results = await asyncio.gather(handle.wait(), other.wait())
    assert [result.stdout for result in results] == ["hello", "hello"]
    sleeper = await abox.commands.run("exec sleep 30", background=True)
    await sleeper.disconnect()
    again = await abox.commands.connect(sleeper.pid)
    assert await abox.commands.kill(sleeper.pid)
    with pytest.raises(CommandExitException) as failure:
        await again.wait()
    assert failure.value.error == "signal: killed"
    assert not await abox.commands.kill(sleeper.pid)
    with pytest.raises(NotFoundException):
        await abox.commands.connect(UNKNOWN)


async def test_async_stream_input(abox: AsyncSandbox) -> None:
    """executor 2.2, 4.8: input over one stream, each piece as it is sent."""
    seen: asyncio.Queue[str] = asyncio.Queue()
    handle = await abox.commands.run("cat", background=True, stdin=True, on_stdout=seen.put_nowait)
    stream = abox.commands.stream_input(handle.pid)
    for piece in ("one", b"two", "three"):
        await stream.send(piece)
        text = piece if isinstance(piece, str) else piece.decode()
        assert await asyncio.wait_for(seen.get(), 20) == text
    await stream.close()
    await handle.close_stdin()
    assert (await handle.wait()).stdout == "onetwothree"
    late = abox.commands.stream_input(handle.pid)
    with pytest.raises(NotFoundException):
        await late.send("late")
        await late.close()


async def test_async_commands_at_once(abox: AsyncSandbox) -> None:
    """executor 4.4: each has its own output and its own end."""
    results = await asyncio.gather(*(abox.commands.run(f"echo {n}") for n in range(32)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(32)]

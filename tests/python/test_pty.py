"""`sandbox.pty` of the official Python SDK: every method, with the synchronous and the asynchronous client.

One sandbox without a workspace and one with, where processes live behind the sandbox boundary and have a
/dev of the engine's all the same. Tests leave no process behind, which the fixtures look after.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from conftest import Server
from e2b import (AsyncSandbox, CommandExitException, InvalidArgumentException, NotFoundException,
                 PtySize, Sandbox, TimeoutException)
from e2b.exceptions import SandboxException
from e2b.sandbox_sync.commands.command_handle import CommandHandle

SIZE = PtySize(rows=24, cols=80)
UNKNOWN = 999_999


@pytest.fixture(scope="module", params=["plain", "workspace"])
def shared(server: Server, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    metadata = {"session": f"pty-{time.time_ns()}"} if request.param == "workspace" else {}
    made = server.create(metadata=metadata, timeout=600)
    yield made
    made.kill()


class Shell:
    """A shell in a terminal, and what the terminal has shown since the last look."""

    def __init__(self, box: Sandbox, handle: CommandHandle | None = None, **options: object) -> None:
        self.box = box
        self.handle = handle or box.pty.create(**{"size": SIZE, "timeout": 30, **options})
        self.pid = self.handle.pid
        self.output = iter(self.handle)
        self.shown = ""

    def press(self, keys: str) -> None:
        self.box.pty.send_stdin(self.pid, keys.encode())

    def until(self, text: str) -> str:
        """Waits until the terminal shows a text; all up to it. The shell's own limit ends the wait."""
        while text not in self.shown:
            stdout, stderr, pty = next(self.output)
            assert (stdout, stderr) == (None, None)
            self.shown += pty.decode()
        seen, text, self.shown = self.shown.partition(text)
        return seen

    def run(self, command: str) -> str:
        """What a command prints, which must end well."""
        # The marks are put together by the shell, so that the echo of the command has none.
        self.press(f"echo '<''<'; {command}; echo \"=$?\"'>''>'\n")
        self.until("<<\r\n")
        printed, code = self.until(">>\r\n").rsplit("=", 1)
        assert code == "0", printed
        return printed.replace("\r\n", "\n")

    def leave(self) -> None:
        self.press("exit\n")
        assert self.handle.wait().exit_code == 0


def test_create_makes_a_login_shell_in_a_terminal(box: Sandbox) -> None:
    """executor 4.1, 4.3: what the SDK asks for, with its TERM and LANG; 11 (14): `exit` is exit code 0."""
    shell = Shell(box)
    [info] = box.commands.list()
    assert (info.pid, info.cmd, info.args) == (shell.pid, "/bin/bash", ["-i", "-l"])
    assert shell.run("tty").startswith("/dev/pts/")
    assert shell.run("stty size; tput cols") == "24 80\n80\n"
    assert shell.run("echo $TERM $LANG $LC_ALL") == "xterm-256color C.UTF-8 C.UTF-8\n"
    assert shell.run("id -un; pwd; stat -c %U $(tty)") == "user\n/home/user\nuser\n"
    assert shell.run("echo err >&2; echo by name >$(tty); echo control >/dev/tty") == (
        "err\nby name\ncontrol\n")
    shell.leave()


def test_create_with_user_directory_and_environment(box: Sandbox) -> None:
    """executor 4.1, 4.2: as for any process."""
    shell = Shell(box, user="root", cwd="/tmp", envs={"TERM": "dumb", "OWN": "own"})
    assert shell.run("id -un; pwd; echo $TERM $OWN") == "root\n/tmp\ndumb own\n"
    shell.leave()
    with pytest.raises(InvalidArgumentException):
        box.pty.create(SIZE, cwd="/nowhere")


def test_programs_that_want_a_terminal(box: Sandbox) -> None:
    """executor 4.3: the device is usable by its user: sudo, terminals in terminals, pagers."""
    shell = Shell(box)
    assert shell.run("sudo tty").startswith("/dev/pts/")
    assert shell.run("sudo -n id -u") == "0\n"
    # Another terminal inside, made by the user's own program.
    assert shell.run("script -qec 'tty; stty size' /dev/null").splitlines()[1] == "24 80"
    python = "import os, pty; os._exit(pty.spawn([\"tty\"]))"
    assert shell.run(f"python3 -c '{python}'").startswith("/dev/pts/")
    # A pager reads keys from /dev/tty while its input is a pipe.
    shell.press("seq 500 | more\n")
    shell.until("--More--")
    shell.press("q")
    shell.until("$ ")
    assert shell.run("echo after") == "after\n"
    shell.leave()


def test_resize_is_seen_at_once_and_told_to_programs(box: Sandbox) -> None:
    """executor 4.8, 11 (14): `Update` straight after create; the window signal."""
    shell = Shell(box)
    box.pty.resize(shell.pid, PtySize(rows=50, cols=132))
    assert shell.run("tput cols; stty size") == "132\n50 132\n"
    shell.run("trap 'echo changed to $(stty size)' WINCH")
    box.pty.resize(shell.pid, PtySize(rows=10, cols=20))
    shell.press("\n")
    shell.until("changed to 10 20")
    shell.leave()
    with pytest.raises(NotFoundException):
        box.pty.resize(shell.pid, SIZE)


def test_keys_reach_the_foreground_job(box: Sandbox) -> None:
    """executor 4.3: job control: interrupt, stop, continue."""
    shell = Shell(box)

    def cat() -> None:
        shell.press("echo run''ning; cat\n")
        shell.until("running\r\n")
        shell.press("ready\n")
        # Once for the keys' echo, once from the program.
        shell.until("ready\r\n")
        shell.until("ready\r\n")

    cat()
    shell.press("\x03")
    shell.until("^C")
    # The shell throws away what was typed before its prompt.
    shell.until("$ ")
    assert shell.run("echo interrupted") == "interrupted\n"
    cat()
    shell.press("\x1a")
    shell.until("Stopped")
    shell.until("$ ")
    shell.press("fg\n")
    shell.until("cat\r\n")
    shell.press("again\n")
    shell.until("again\r\n")
    shell.until("again\r\n")
    shell.press("\x04")
    shell.until("$ ")
    assert shell.run("jobs; echo ended") == "ended\n"
    shell.leave()


def test_a_disconnected_shell_goes_on_with_the_next_client(box: Sandbox) -> None:
    """executor 2.7, 11 (14): disconnect, connect and more input continue the same shell."""
    shell = Shell(box)
    shell.run("kept=value")
    shell.handle.disconnect()
    again = Shell(box, box.pty.connect(shell.pid, timeout=30))
    assert again.run("echo $kept") == "value\n"
    again.leave()
    # Its end is kept for a while.
    assert box.pty.connect(shell.pid).wait().exit_code == 0
    with pytest.raises(NotFoundException):
        box.pty.connect(UNKNOWN)


def test_kill_ends_and_reaps_it(box: Sandbox) -> None:
    """executor 4.7, 11 (2): `kill -0` fails in the next command, for terminals too."""
    shell = Shell(box)
    assert box.pty.kill(shell.pid)
    with pytest.raises(CommandExitException) as failure:
        shell.handle.wait()
    assert (failure.value.exit_code, failure.value.error) == (-1, "signal: killed")
    assert box.commands.run(f"kill -0 {shell.pid} 2>/dev/null || echo gone").stdout == "gone\n"
    assert not box.pty.kill(shell.pid)
    with pytest.raises(NotFoundException):
        box.pty.send_stdin(shell.pid, b"late")


def test_a_timeout_ends_the_shell(box: Sandbox) -> None:
    """executor 4.7: a deadline is the shell's life."""
    with pytest.raises(TimeoutException):
        box.pty.create(SIZE, timeout=0.5).wait()


def test_input_for_the_wrong_kind_of_process(box: Sandbox) -> None:
    """executor 4.8: stdin of a terminal and keys for a pipe are `internal`, closing a terminal `unknown`."""
    shell = Shell(box)
    with pytest.raises(SandboxException, match="(?i)internal"):
        box.commands.send_stdin(shell.pid, "x")
    with pytest.raises(SandboxException, match="(?i)unknown"):
        box.commands.close_stdin(shell.pid)
    shell.leave()
    command = box.commands.run("sleep 30", background=True, stdin=True)
    with pytest.raises(SandboxException, match="(?i)internal"):
        box.pty.send_stdin(command.pid, b"x")
    with pytest.raises(SandboxException, match="(?i)internal"):
        box.pty.resize(command.pid, SIZE)
    assert command.kill()


def test_stream_input_types(box: Sandbox) -> None:
    """executor 4.8: keys over one stream, in order."""
    shell = Shell(box)
    box.pty.stream_input(shell.pid, ["echo $((6", b" * 7))\n", "exit\n"])
    shell.until("42\r\n")
    assert shell.handle.wait().exit_code == 0
    with pytest.raises(NotFoundException):
        box.pty.stream_input(shell.pid, ["late"])


def test_long_output_is_whole(box: Sandbox) -> None:
    """executor 4.5: nothing is lost on the way through a terminal."""
    shell = Shell(box)
    assert shell.run("seq 50000") == "".join(f"{n}\n" for n in range(1, 50_001))
    shell.leave()


async def test_async_life_of_a_shell(abox: AsyncSandbox) -> None:
    """executor 4.3, 4.7, 4.8: create, resize, input, disconnect, connect, kill, asynchronously."""
    shown = bytearray()
    grown = asyncio.Event()

    def on_data(data: bytes) -> None:
        shown.extend(data)
        grown.set()

    async def shows(text: bytes) -> None:
        while text not in shown:
            grown.clear()
            await asyncio.wait_for(grown.wait(), 20)
        del shown[:shown.index(text) + len(text)]

    shell = await abox.pty.create(SIZE, on_data, timeout=60)
    await abox.pty.resize(shell.pid, PtySize(rows=30, cols=100))
    await abox.pty.send_stdin(shell.pid, b"kept=value; stty size\n")
    await shows(b"30 100\r\n")
    await shell.disconnect()
    again = await abox.pty.connect(shell.pid, on_data)
    stream = abox.pty.stream_input(shell.pid)
    await stream.send("echo [$ke")
    await stream.send(b"pt]\n")
    await stream.close()
    await shows(b"[value]\r\n")
    assert await abox.pty.kill(shell.pid)
    with pytest.raises(CommandExitException) as failure:
        await again.wait()
    assert failure.value.error == "signal: killed"
    assert not await abox.pty.kill(shell.pid)
    with pytest.raises(NotFoundException):
        await abox.pty.connect(UNKNOWN, on_data)

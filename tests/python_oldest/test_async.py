"""The oldest SDK's asynchronous client, where it differs: one connection pool for one event loop, output
and events by callback, the stream of a watched directory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from e2b import (AsyncSandbox, CommandExitException, NotFoundException, PtySize, Sandbox,
                 SandboxQuery, TimeoutException)
from e2b.sandbox.filesystem.watch_handle import FilesystemEvent, FilesystemEventType


@pytest_asyncio.fixture
async def box(sandbox: Sandbox) -> AsyncIterator[AsyncSandbox]:
    yield await AsyncSandbox.connect(sandbox.sandbox_id, timeout=300)


async def test_a_sandbox_lives_and_dies() -> None:
    box = await AsyncSandbox.create("base", timeout=60, metadata={"life": "oldest"})
    assert await box.is_running()
    pages = AsyncSandbox.list(query=SandboxQuery(metadata={"life": "oldest"}))
    assert [item.sandbox_id for item in await pages.next_items()] == [box.sandbox_id]
    await box.set_timeout(120)
    info = await box.get_info()
    assert info.metadata == {"life": "oldest"}
    assert await box.kill()
    assert not await box.is_running()
    with pytest.raises(NotFoundException):
        await AsyncSandbox.connect(box.sandbox_id)


async def test_commands(box: AsyncSandbox) -> None:
    lines: list[str] = []
    result = await box.commands.run("for i in 1 2 3; do echo $i; done; echo e >&2",
                                    on_stdout=lines.append)
    assert result.stdout == "".join(lines) == "1\n2\n3\n" and result.stderr == "e\n"
    with pytest.raises(CommandExitException) as failure:
        await box.commands.run("exit 7")
    assert failure.value.exit_code == 7
    handle = await box.commands.run("read line; echo got $line", background=True)
    await box.commands.send_stdin(handle.pid, "it\n")
    assert (await handle.wait()).stdout == "got it\n"
    sleeper = await box.commands.run("sleep 100", background=True)
    again = await box.commands.connect(sleeper.pid)
    assert await sleeper.kill()
    with pytest.raises(CommandExitException):
        await again.wait()
    assert not await box.commands.kill(999_999)
    with pytest.raises(TimeoutException):
        await box.commands.run("sleep 10", timeout=1)


async def test_many_commands_at_once(box: AsyncSandbox) -> None:
    results = await asyncio.gather(*(box.commands.run(f"sleep 0.2; echo {n}") for n in range(20)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(20)]


async def test_a_terminal(box: AsyncSandbox) -> None:
    seen = bytearray()
    shell = await box.pty.create(PtySize(rows=24, cols=80), on_data=seen.extend)
    await box.pty.resize(shell.pid, PtySize(rows=24, cols=111))
    await box.pty.send_stdin(shell.pid, b"echo [$(tput cols)]; exit\n")
    assert (await shell.wait()).exit_code == 0
    assert b"[111]" in seen
    other = await box.pty.create(PtySize(rows=24, cols=80), on_data=seen.extend)
    assert await other.kill()


async def test_files(box: AsyncSandbox) -> None:
    files = box.files
    content = os.urandom(500_000)
    await files.write("async/a b.bin", content)
    assert bytes(await files.read("async/a b.bin", format="bytes")) == content
    assert [entry.name for entry in await files.list("async")] == ["a b.bin"]
    assert (await files.get_info("async/a b.bin")).size == len(content)
    await files.rename("async/a b.bin", "async/b")
    assert await files.exists("async/b") and not await files.exists("async/a b.bin")
    assert not await files.make_dir("async")
    await files.remove("async")
    with pytest.raises(NotFoundException):
        await files.read("async/b")


async def test_the_stream_of_a_watched_directory(box: AsyncSandbox) -> None:
    await box.files.make_dir("stream")
    events: asyncio.Queue[FilesystemEvent] = asyncio.Queue()
    ended: list[Exception] = []
    handle = await box.files.watch_dir("stream", on_event=events.put, on_exit=ended.append,
                                       recursive=True)
    await box.files.write("stream/a.txt", "1")
    kinds = [FilesystemEventType.CREATE, FilesystemEventType.CHMOD, FilesystemEventType.WRITE]
    for kind in kinds:
        event = await asyncio.wait_for(events.get(), 10)
        assert (event.name, event.type) == ("a.txt", kind)
    await box.files.write("stream/deep/b.txt", "2")
    while (await asyncio.wait_for(events.get(), 10)).name != "deep/b.txt":
        pass
    await handle.stop()
    assert ended == []
    with pytest.raises(NotFoundException):
        await box.files.watch_dir("nothing", on_event=events.put)


async def test_a_host(box: AsyncSandbox) -> None:
    assert box.get_host(8000) == f"8000-{box.sandbox_id}.{os.environ['E2B_DOMAIN']}"

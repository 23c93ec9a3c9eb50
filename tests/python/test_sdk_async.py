"""The official Python SDK, asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from conftest import Server
from e2b import AsyncSandbox, CommandExitException, SandboxQuery
from e2b.exceptions import SandboxNotFoundException


@pytest_asyncio.fixture
async def box(server: Server) -> AsyncIterator[AsyncSandbox]:
    sandbox = await AsyncSandbox.create(metadata={"kind": "async"}, **server.options())
    yield sandbox
    await sandbox.kill()


async def test_commands(box: AsyncSandbox) -> None:
    assert (await box.commands.run("echo $((6 * 7))")).stdout == "42\n"
    with pytest.raises(CommandExitException):
        await box.commands.run("false")
    handle = await box.commands.run("cat", background=True, stdin=True)
    await box.commands.send_stdin(handle.pid, "hello\n")
    await box.commands.close_stdin(handle.pid)
    assert (await handle.wait()).stdout == "hello\n"


async def test_many_commands_at_once(box: AsyncSandbox) -> None:
    results = await asyncio.gather(*(box.commands.run(f"sleep 0.2; echo {n}") for n in range(20)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(20)]


async def test_files(box: AsyncSandbox) -> None:
    await box.files.write("a/b.txt", "text")
    assert await box.files.read("a/b.txt") == "text"
    assert [entry.name for entry in await box.files.list("a")] == ["b.txt"]
    assert await box.files.exists("a/b.txt")
    await box.files.remove("a")
    assert not await box.files.exists("a/b.txt")


async def test_life(server: Server) -> None:
    box = await AsyncSandbox.create(metadata={"life": "async"}, timeout=60, **server.options())
    assert await box.is_running()
    await box.set_timeout(120)
    info = await box.get_info()
    assert info.metadata == {"life": "async"}
    pages = AsyncSandbox.list(query=SandboxQuery(metadata={"life": "async"}), **server.options())
    assert [item.sandbox_id for item in await pages.next_items()] == [box.sandbox_id]
    again = await AsyncSandbox.connect(box.sandbox_id, **server.options())
    assert (await again.commands.run("true")).exit_code == 0
    assert await box.kill()
    assert not await box.is_running()
    with pytest.raises(SandboxNotFoundException):
        await box.get_info()


async def test_ten_sandboxes_at_once(server: Server) -> None:
    boxes = await asyncio.gather(*(AsyncSandbox.create(**server.options()) for _ in range(10)))
    try:
        assert len({box.sandbox_id for box in boxes}) == 10
        results = await asyncio.gather(*(box.commands.run("echo $E2B_SANDBOX_ID") for box in boxes))
        assert [result.stdout.strip() for result in results] == [box.sandbox_id for box in boxes]
    finally:
        assert all(await asyncio.gather(*(box.kill() for box in boxes)))

"""Watching directories with the official Python SDK, sync (a watcher that is asked) and async (a stream)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from conftest import module_sandbox
from e2b import AsyncSandbox, FilesystemEvent, FilesystemEventType, InvalidArgumentException, Sandbox
from e2b.exceptions import FileNotFoundException, SandboxException, TimeoutException

CREATE, WRITE, CHMOD, REMOVE, RENAME = (
    FilesystemEventType.CREATE, FilesystemEventType.WRITE, FilesystemEventType.CHMOD,
    FilesystemEventType.REMOVE, FilesystemEventType.RENAME)


shared = module_sandbox("watch")


@pytest.fixture
def folder(box: Sandbox, request: pytest.FixtureRequest) -> str:
    """A directory below home that no other test uses."""
    name = request.node.originalname
    box.files.make_dir(name)
    return name


def told(events: list[FilesystemEvent]) -> list[tuple[FilesystemEventType, str]]:
    return [(event.type, event.name) for event in events]


def test_uploads_are_told_exactly_and_at_once(box: Sandbox, folder: str) -> None:
    # executor 5.4, 11.26: no wait between the write and the question
    box.files.make_dir(f"{folder}/nested")
    handle = box.files.watch_dir(folder)
    for n in range(20):
        box.files.write(f"{folder}/f{n}", "content")
        assert told(handle.get_new_events()) == [
            (CREATE, f"f{n}"), (CHMOD, f"f{n}"), (WRITE, f"f{n}")]
    box.files.write(f"{folder}/f0", "again")
    assert told(handle.get_new_events()) == [(CHMOD, "f0"), (WRITE, "f0"), (WRITE, "f0")]
    box.files.write(f"{folder}/m", "x", metadata={"a": "b"})
    assert told(handle.get_new_events()) == [
        (CREATE, "m"), (CHMOD, "m"), (WRITE, "m"), (CHMOD, "m")]
    box.files.rename(f"{folder}/m", f"{folder}/n")
    assert told(handle.get_new_events()) == [(RENAME, "m"), (CREATE, "n")]
    box.files.remove(f"{folder}/n")
    assert told(handle.get_new_events()) == [(REMOVE, "n")]
    box.files.make_dir(f"{folder}/d")
    assert told(handle.get_new_events()) == [(CREATE, "d"), (CHMOD, "d")]
    # Not recursive.
    box.files.write(f"{folder}/nested/f", "x")
    assert handle.get_new_events() == []
    handle.stop()


def test_a_stopped_watcher_is_gone(box: Sandbox, folder: str) -> None:
    # executor 5.4, 11.30
    handle = box.files.watch_dir(folder)
    again = box.files.watch_dir(folder)
    handle.stop()
    with pytest.raises(SandboxException):
        handle.get_new_events()
    with pytest.raises(SandboxException):
        handle.stop()
    box.files.write(f"{folder}/f", "x")
    assert len(again.get_new_events()) == 3
    again.stop()


def test_recursive_watching_sees_new_directories_whole(box: Sandbox, folder: str) -> None:
    # executor 5.4, 11.27
    box.files.make_dir(f"{folder}/old")
    handle = box.files.watch_dir(folder, recursive=True)
    box.files.write(f"{folder}/old/f", "x")
    assert told(handle.get_new_events()) == [
        (CREATE, "old/f"), (CHMOD, "old/f"), (WRITE, "old/f")]
    for n in range(20):
        box.files.make_dir(f"{folder}/new{n}")
        box.files.write(f"{folder}/new{n}/f", "x")
        events = told(handle.get_new_events())
        assert events[:2] == [(CREATE, f"new{n}"), (CHMOD, f"new{n}")]
        assert events[2:] == [(kind, f"new{n}/f") for kind in (CREATE, CHMOD, WRITE)]
    box.commands.run(f"mkdir -p {folder}/a/b/c")
    created = [name for kind, name in told(handle.get_new_events()) if kind == CREATE]
    assert list(dict.fromkeys(created)) == ["a", "a/b", "a/b/c"]
    box.files.rename(f"{folder}/a", f"{folder}/moved")
    box.files.write(f"{folder}/moved/b/f", "x")
    events = told(handle.get_new_events())
    assert events[:2] == [(RENAME, "a"), (CREATE, "moved")]
    assert (WRITE, "moved/b/f") in events
    handle.stop()


def test_entries_come_where_they_are_asked_for(box: Sandbox, folder: str) -> None:
    # executor 5.4, 11.29
    handle = box.files.watch_dir(folder, recursive=True, include_entry=True)
    box.files.write(f"{folder}/d/f", "12345")
    events = handle.get_new_events()
    last = events[-1]
    assert (last.type, last.name) == (WRITE, "d/f")
    assert last.entry is not None
    assert (last.entry.path, last.entry.size) == (f"/home/user/{folder}/d/f", 5)
    box.files.remove(f"{folder}/d/f")
    assert [(e.type, e.entry) for e in handle.get_new_events()] == [(REMOVE, None)]
    handle.stop()


def test_what_cannot_be_watched(box: Sandbox, folder: str) -> None:
    # executor 5.4, 11.28
    box.files.write(f"{folder}/file", "x")
    with pytest.raises(FileNotFoundException):
        box.files.watch_dir(f"{folder}/none")
    with pytest.raises(InvalidArgumentException):
        box.files.watch_dir(f"{folder}/file")
    with pytest.raises(InvalidArgumentException):
        box.files.watch_dir("~nobody")


def test_the_workspace_is_watched_where_it_is_asked_for(box: Sandbox) -> None:
    # executor 5.4: FUSE is a network file system; changes made in this sandbox are seen.
    folder = "/workspace/artifacts"
    with pytest.raises(InvalidArgumentException, match="allow_network_mounts"):
        box.files.watch_dir(folder)
    handle = box.files.watch_dir(folder, recursive=True, allow_network_mounts=True)
    box.files.write(f"{folder}/api", "x")
    events = told(handle.get_new_events())
    assert events[0] == (CREATE, "api") and (WRITE, "api") in events
    box.commands.run(f"mkdir {folder}/d && echo x > {folder}/d/by-program && rm {folder}/api")
    events = told(handle.get_new_events())
    assert (CREATE, "d") in events and (REMOVE, "api") in events
    assert (CREATE, "d/by-program") in events
    handle.stop()


def test_many_directories_at_once(box: Sandbox, folder: str) -> None:
    # issue 4, "Bad input": 10,000 watch entries
    box.commands.run(f"cd {folder} && mkdir -p $(seq -f 'd%g' 1 100) && "
                     "for d in d*; do (cd $d && mkdir $(seq 1 99)); done")
    handle = box.files.watch_dir(folder, recursive=True)
    box.files.write(f"{folder}/d100/99/f", "x")
    assert told(handle.get_new_events()) == [
        (kind, "d100/99/f") for kind in (CREATE, CHMOD, WRITE)]
    handle.stop()


class Seen:
    """Collects what a stream tells."""

    def __init__(self) -> None:
        self.events: list[FilesystemEvent] = []
        self.ends: list[Exception | None] = []
        self.news = asyncio.Event()

    def on_event(self, event: FilesystemEvent) -> None:
        self.events.append(event)
        self.news.set()

    def on_exit(self, error: Exception | None) -> None:
        self.ends.append(error)
        self.news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.news.clear()
                await self.news.wait()


async def test_a_stream_tells_what_happens(abox: AsyncSandbox, folder: str) -> None:
    # executor 5.4, 2.2: the start comes first, or this would hang
    seen = Seen()
    handle = await abox.files.watch_dir(folder, seen.on_event, seen.on_exit, recursive=True,
                                        include_entry=True)
    await abox.files.write(f"{folder}/d/f", "12345")
    await seen.until(lambda: len(seen.events) >= 5)
    assert told(seen.events)[-3:] == [(CREATE, "d/f"), (CHMOD, "d/f"), (WRITE, "d/f")]
    assert seen.events[0].name == "d"
    assert seen.events[-1].entry is not None
    assert seen.events[-1].entry.path == f"/home/user/{folder}/d/f"
    await handle.stop()
    assert seen.ends == [None]


async def test_a_stream_ends_at_its_time(abox: AsyncSandbox, folder: str) -> None:
    # executor 2.5
    seen = Seen()
    await abox.files.watch_dir(folder, seen.on_event, seen.on_exit, timeout=1)
    await seen.until(lambda: seen.ends)
    assert isinstance(seen.ends[0], TimeoutException)


async def test_what_cannot_be_watched_async(abox: AsyncSandbox, folder: str) -> None:
    # executor 11.28
    await abox.files.write(f"{folder}/file", "x")
    with pytest.raises(FileNotFoundException):
        await abox.files.watch_dir(f"{folder}/none", lambda _: None)
    with pytest.raises(InvalidArgumentException):
        await abox.files.watch_dir(f"{folder}/file", lambda _: None)
    with pytest.raises(InvalidArgumentException, match="allow_network_mounts"):
        await abox.files.watch_dir("/workspace", lambda _: None)


async def test_a_stream_on_the_workspace(abox: AsyncSandbox) -> None:
    seen = Seen()
    handle = await abox.files.watch_dir("/workspace/uploads", seen.on_event,
                                        allow_network_mounts=True)
    await abox.files.write("/workspace/uploads/f", "x")
    await seen.until(lambda: (WRITE, "f") in told(seen.events))
    assert told(seen.events)[0] == (CREATE, "f")
    await handle.stop()

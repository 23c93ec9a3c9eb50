"""LangChain's deep agents with `langchain-e2b`, unmodified, and a scripted model: file tools and commands in a sandbox,
by both of its back ends, and a pause between two turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from deepagents import create_deep_agent
from e2b import AsyncSandbox, Sandbox
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_e2b import AsyncE2BSandbox, E2BSandbox


class Scripted(GenericFakeChatModel):
    """Calls tools one after the other, then says that it is done."""

    def bind_tools(self, *_: Any, **__: Any) -> Scripted:
        return self


def scripted(*calls: tuple[str, dict[str, Any]]) -> Scripted:
    turns = [AIMessage(content="", tool_calls=[{"name": name, "args": arguments, "id": f"call-{n}"}])
             for n, (name, arguments) in enumerate(calls)]
    return Scripted(messages=iter([*turns, AIMessage(content="done")]))


def told(result: dict[str, Any]) -> list[str]:
    """What the tools answered."""
    assert result["messages"][-1].content == "done"
    return [str(message.content) for message in result["messages"] if isinstance(message, ToolMessage)]


QUESTION = {"messages": [{"role": "user", "content": "Do what the script says."}]}
WORK = (
    ("write_file", {"file_path": "/home/user/notes.txt", "content": "first\nsecond\n"}),
    ("edit_file", {"file_path": "/home/user/notes.txt", "old_string": "second", "new_string": "changed"}),
    ("read_file", {"file_path": "/home/user/notes.txt"}),
    ("execute", {"command": "cat notes.txt; id -un; pwd; exit 3"}),
    ("grep", {"pattern": "changed", "path": "/home/user"}),
    ("glob", {"pattern": "*.txt", "path": "/home/user"}),
    ("ls", {"path": "/home/user"}),
    ("read_file", {"file_path": "/home/user/nothing.txt"}),
)


def check(answers: list[str]) -> None:
    assert "first" in answers[2] and "changed" in answers[2]
    assert "first\nchanged\nuser\n/home/user" in answers[3] and "3" in answers[3].splitlines()[-1]
    for answer in answers[4:7]:
        assert "notes.txt" in answer, answer
    assert "file_not_found" in answers[7]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox.create("base", timeout=300, lifecycle={"on_timeout": "pause", "auto_resume": True})
    yield made
    made.kill()


@pytest_asyncio.fixture
async def async_sandbox() -> AsyncIterator[AsyncSandbox]:
    made = await AsyncSandbox.create("base", timeout=300)
    yield made
    await made.kill()


def test_a_deep_agent_uses_its_tools(sandbox: Sandbox) -> None:
    backend = E2BSandbox(sandbox=sandbox)
    assert backend.id == sandbox.sandbox_id
    check(told(create_deep_agent(model=scripted(*WORK), backend=backend).invoke(QUESTION)))
    assert sandbox.files.read("notes.txt") == "first\nchanged\n"


async def test_an_asynchronous_one_too(async_sandbox: AsyncSandbox) -> None:
    backend = AsyncE2BSandbox(sandbox=async_sandbox)
    check(told(await create_deep_agent(model=scripted(*WORK), backend=backend).ainvoke(QUESTION)))


def test_it_goes_on_after_a_pause(sandbox: Sandbox) -> None:
    """The back end's provider attaches by connect; a back end that is still held wakes its sandbox by itself."""
    backend = E2BSandbox(sandbox=sandbox)
    begin = scripted(("write_file", {"file_path": "/home/user/kept.txt", "content": "kept"}),
                     ("execute", {"command": "sleep 1000 > /dev/null 2>&1 & echo $! > pid"}))
    told(create_deep_agent(model=begin, backend=backend).invoke(QUESTION))
    look = ("execute", {"command": "cat kept.txt; kill -0 $(cat pid) && echo -alive"})
    assert sandbox.pause()
    [answer] = told(create_deep_agent(model=scripted(look), backend=backend).invoke(QUESTION))
    assert "kept-alive" in answer
    assert sandbox.pause()
    attached = E2BSandbox(sandbox=Sandbox.connect(sandbox.sandbox_id, timeout=300))
    [answer] = told(create_deep_agent(model=scripted(look), backend=attached).invoke(QUESTION))
    assert "kept-alive" in answer


def test_files_are_moved_in_and_out_in_bulk(sandbox: Sandbox) -> None:
    backend = E2BSandbox(sandbox=sandbox)
    files = [(f"/home/user/up/{n}", bytes(range(256)) * 100 * n) for n in range(5)]
    assert all(answer.error is None for answer in backend.upload_files(files))
    down = backend.download_files([path for path, _ in files])
    assert [(answer.path, answer.content) for answer in down] == files
    [missing] = backend.download_files(["/home/user/nothing"])
    assert missing.error is not None


def test_a_command_that_takes_too_long(sandbox: Sandbox) -> None:
    answer = E2BSandbox(sandbox=sandbox).execute("sleep 60", timeout=1)
    assert answer.exit_code == 124

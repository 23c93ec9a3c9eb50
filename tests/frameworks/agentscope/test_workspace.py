"""AgentScope with its E2B workspace, unmodified, and a scripted model. A workspace finds its sandbox by metadata over
running and paused ones, pauses at its end, and resumes by connect; a gateway for MCP servers runs inside.

Only its bootstrap is another: it fetches packages from the internet, and tests do without that. The same packages are
brought from this machine (GATEWAY_PACKAGES, which scripts/setup makes).
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import uuid
from typing import Any

import pytest
from agentscope.agent import Agent
from agentscope.credential import OpenAICredential
from agentscope.formatter import OpenAIChatFormatter
from agentscope.message import TextBlock, ToolCallBlock, ToolResultBlock, UserMsg
from agentscope.model import ChatModelBase, ChatResponse
from agentscope.permission import PermissionContext, PermissionMode
from agentscope.state import AgentState
from agentscope.tool import Toolkit
from agentscope.workspace import E2BWorkspace
from e2b import AsyncSandbox, SandboxQuery

PACKAGES = "/home/user/packages.tar.gz"


class Workspace(E2BWorkspace):
    """With a bootstrap that needs no internet."""

    async def _provision_backend(self) -> None:
        await super()._provision_backend()
        if not await self.get_backend().file_exists(PACKAGES):
            archive = pathlib.Path(os.environ["GATEWAY_PACKAGES"]).read_bytes()
            await self._sandbox.files.write(PACKAGES, archive)

    def _bootstrap_commands(self) -> list[str]:
        return [f"python3 -m venv --without-pip {self._gateway_venv}",
                f"tar -xzf {PACKAGES} -C {self._gateway_venv}/lib/python3.*/site-packages"]


class Scripted(ChatModelBase):
    """Calls tools one after the other, then says that it is done. Keeps what the tools answered."""

    def __init__(self, *calls: tuple[str, dict[str, Any]]) -> None:
        super().__init__(OpenAICredential(api_key="none"), "scripted", self.Parameters(), stream=False)
        self.formatter = OpenAIChatFormatter()
        self.calls = list(calls)
        self.answers: list[str] = []

    async def _call_api(self, model_name: str, messages: list[Any], *_: Any, **__: Any) -> ChatResponse:
        self.answers = [str(block.output) for message in messages for block in message.content
                        if isinstance(block, ToolResultBlock)]
        if self.calls:
            name, arguments = self.calls.pop(0)
            block: Any = ToolCallBlock(id=uuid.uuid4().hex, name=name, input=json.dumps(arguments))
        else:
            block = TextBlock(text="done")
        return ChatResponse(content=[block], is_last=True)


async def run(workspace: Workspace, *calls: tuple[str, dict[str, Any]]) -> list[str]:
    """What the tools answered to an agent with the workspace's tools."""
    model = Scripted(*calls)
    state = AgentState(permission_context=PermissionContext(mode=PermissionMode.BYPASS))
    agent = Agent("tester", await workspace.get_instructions(), model,
                  toolkit=Toolkit(tools=await workspace.list_tools()), state=state)
    answer = await agent.reply(UserMsg(name="user", content="Do what the script says."))
    assert answer.get_text_content() == "done"
    return model.answers


async def healthy(workspace: E2BWorkspace) -> None:
    """Waits until the gateway answers. AgentScope's own start may take an answer of the gateway that it just told
    to end for one of the new gateway, which may still be starting then."""
    for _ in range(300):
        if await workspace._gateway.health():
            return
        await asyncio.sleep(0.1)
    log = await workspace.get_backend().read_file(workspace._gateway_log)
    raise AssertionError(f"the gateway does not answer; its log: {log.decode(errors='replace')[-2000:]}")


async def states(workspace_id: str) -> list[tuple[str, str]]:
    query = SandboxQuery(metadata={"agentscope.workspace.id": workspace_id})
    return [(found.sandbox_id, found.state.value) for found in await AsyncSandbox.list(query=query).next_items()]


@pytest.fixture
def workspace_id() -> str:
    return uuid.uuid4().hex


async def test_an_agent_uses_its_tools_and_goes_on_after_a_pause(workspace_id: str) -> None:
    async with Workspace(workspace_id=workspace_id, env={"FROM_CREATE": "yes"}) as workspace:
        sandbox_id = workspace.sandbox_id
        path = f"{workspace.workdir}/notes.txt"
        answers = await run(
            workspace,
            ("Write", {"file_path": path, "content": "first\nsecond\n"}),
            ("Read", {"file_path": path}),
            ("Edit", {"file_path": path, "old_string": "second", "new_string": "changed"}),
            ("Bash", {"command": "cat notes.txt; pwd; id -un; echo $FROM_CREATE", "description": "look"}),
            ("Glob", {"pattern": "*.txt", "path": workspace.workdir}))
        assert "first" in answers[1]
        for part in ("first", "changed", "/home/user/workspace", "user", "yes"):
            assert part in answers[3], answers[3]
        assert "notes.txt" in answers[4]
        await healthy(workspace)
        assert await states(workspace_id) == [(sandbox_id, "running")]
    assert await states(workspace_id) == [(sandbox_id, "paused")]
    # Another object, as another process would make it: found by its metadata.
    async with Workspace(workspace_id=workspace_id) as again:
        assert again.sandbox_id == sandbox_id
        [answer] = await run(again, ("Bash", {"command": "cat notes.txt; echo $FROM_CREATE", "description": "look"}))
        assert r"first\nchanged\nyes" in answer
        await healthy(again)
    assert await states(workspace_id) == [(sandbox_id, "paused")]
    assert await AsyncSandbox.kill(sandbox_id)
    assert await states(workspace_id) == []


async def test_many_closings(workspace_id: str) -> None:
    for turn in range(3):
        async with Workspace(workspace_id=workspace_id) as workspace:
            backend = workspace.get_backend()
            await backend.exec_shell(["sh", "-c", f"echo {turn} >> turns"])
            assert (await backend.read_file(f"{workspace.workdir}/turns")).decode().split() == [
                str(n) for n in range(turn + 1)]
    [(sandbox_id, state)] = await states(workspace_id)
    assert state == "paused" and await AsyncSandbox.kill(sandbox_id)


async def test_a_snapshot_with_the_gateway_is_a_template(workspace_id: str) -> None:
    """What the bootstrap made is in it, so that another workspace needs none."""
    async with Workspace(workspace_id=workspace_id) as workspace:
        first = workspace.sandbox_id
        snapshot = await workspace._sandbox.create_snapshot()
    try:
        async with E2BWorkspace(workspace_id=f"{workspace_id}-2", template=snapshot.snapshot_id) as other:
            assert other.sandbox_id != first
            await healthy(other)
            second = other.sandbox_id
        assert await AsyncSandbox.kill(second)
    finally:
        await AsyncSandbox.kill(first)
        await AsyncSandbox.delete_snapshot(snapshot.snapshot_id)

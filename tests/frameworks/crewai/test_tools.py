"""CrewAI's E2B tools, unmodified, and a scripted model. They pin a release of the SDK whose static connect sends no
routing headers (control-plane 5.3): attaching to a sandbox by id is how an agent keeps its state."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from crewai import Agent, BaseLLM, Crew, Task
from crewai_tools import E2BExecTool, E2BFileTool
from e2b import Sandbox, SandboxInfo, SandboxQuery

MARK = {"made-by": "crew"}


class Scripted(BaseLLM):
    """Calls tools one after the other, then says that it is done."""

    def __init__(self, calls: list[tuple[str, dict[str, Any]]]) -> None:
        super().__init__(model="scripted")
        self._turns = [f"Thought: next\nAction: {name}\nAction Input: {json.dumps(arguments)}"
                       for name, arguments in calls]
        self._asked: list[str] = []

    def call(self, messages: Any, *_: Any, **__: Any) -> str:
        self._asked.append(str(messages))
        return self._turns.pop(0) if self._turns else "Thought: I know\nFinal Answer: done"

    def supports_function_calling(self) -> bool:
        return False

    def supports_stop_words(self) -> bool:
        return False

    def get_context_window_size(self) -> int:
        return 100_000


def listed() -> list[SandboxInfo]:
    """The sandboxes that the tools have made and not ended."""
    return Sandbox.list(query=SandboxQuery(metadata=MARK)).next_items()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox.create("base", timeout=300)
    yield made
    made.kill()


def test_a_crew_uses_the_tools() -> None:
    """A sandbox for each call, or one for all: as the tools are told."""
    execute = E2BExecTool(persistent=True, template="base", metadata=MARK, envs={"FROM_CREATE": "yes"})
    model = Scripted([("e2b_sandbox_exec", {"command": "echo $FROM_CREATE > made.txt; id -un; pwd"}),
                      ("e2b_sandbox_exec", {"command": "cat made.txt"})])
    agent = Agent(role="tester", goal="test", backstory="none", llm=model, tools=[execute], verbose=False)
    task = Task(description="Do what the script says.", expected_output="done", agent=agent)
    try:
        result = Crew(agents=[agent], tasks=[task], verbose=False).kickoff()
        assert result.raw == "done"
        # The tools' answers are in what the model is asked next.
        assert "Observation: {" in model._asked[1] and "user\\\\n/home/user" in model._asked[1]
        assert "yes\\\\n" in model._asked[2]
        assert len(listed()) == 1
    finally:
        execute.close()
    assert listed() == []


def test_each_call_has_a_sandbox_of_its_own() -> None:
    execute = E2BExecTool(template="base", metadata=MARK)
    assert execute.run(command="echo x > made; ls")["stdout"] == "made\n"
    assert execute.run(command="ls")["stdout"] == ""
    assert listed() == []


def test_they_attach_to_a_sandbox_by_its_id(sandbox: Sandbox) -> None:
    execute, files = E2BExecTool(sandbox_id=sandbox.sandbox_id), E2BFileTool(sandbox_id=sandbox.sandbox_id)
    assert execute.run(command="echo by-exec > a; pwd", cwd="/tmp", envs={"A": "1"})["stdout"] == "/tmp\n"
    path = "/home/user/dir/b"
    files.run(action="write", path=path, content="by-files")
    assert execute.run(command=f"cat /tmp/a {path}")["stdout"] == "by-exec\nby-files"
    assert files.run(action="read", path=path)["content"] == "by-files"
    assert [entry["name"] for entry in files.run(action="list", path="/home/user/dir")["entries"]] == ["b"]
    assert files.run(action="exists", path=path)["exists"] is True
    binary = base64.b64encode(bytes(range(256))).decode()
    files.run(action="write", path="/tmp/binary", content=binary, binary=True)
    assert files.run(action="read", path="/tmp/binary", binary=True)["content"] == binary
    files.run(action="delete", path=path)
    assert not sandbox.files.exists(path)
    # They never end what they did not make.
    assert sandbox.is_running()


def test_attaching_wakes_a_paused_one(sandbox: Sandbox) -> None:
    execute = E2BExecTool(sandbox_id=sandbox.sandbox_id)
    execute.run(command="echo kept > kept; (sleep 1000 > /dev/null 2>&1 & echo $! > pid)")
    # This release's pause returns nothing.
    sandbox.pause()
    assert sandbox.get_info().state.value == "paused"
    assert execute.run(command="cat kept; kill -0 $(cat pid) && echo alive")["stdout"] == "kept\nalive\n"


def test_a_snapshot_is_a_template_for_them(sandbox: Sandbox) -> None:
    sandbox.files.write("kept", "in the snapshot")
    snapshot = sandbox.create_snapshot()
    try:
        assert E2BExecTool(template=snapshot.snapshot_id).run(command="cat kept")["stdout"] == "in the snapshot"
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id)

"""OpenAI's agents SDK with its E2B sandboxes, unmodified, and a scripted model: it asks for a pause at timeout and
auto-resume in every create, keeps its workspace as a tar or as a snapshot, and resumes by connect or by a create."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from agents import Model, ModelResponse, RunConfig, Runner, Usage, set_tracing_disabled
from agents.extensions.sandbox.e2b import E2BSandboxClient, E2BSandboxClientOptions, E2BSandboxType
from agents.sandbox import LocalSnapshotSpec, Manifest, SandboxAgent, SandboxRunConfig
from agents.sandbox.entries import File
from e2b import AsyncSandbox
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

set_tracing_disabled(True)

CLIENT = E2BSandboxClient()


@dataclass
class Scripted(Model):
    """Calls tools one after the other, then says that it is done. Keeps what the tools answered."""

    calls: list[tuple[str, dict[str, Any]]]
    answers: list[str] = field(default_factory=list)
    turn: int = 0

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:
        told = [item for item in input if isinstance(item, dict) and item.get("type") == "function_call_output"]
        self.answers = [str(item["output"]) for item in told]
        if self.turn < len(self.calls):
            name, arguments = self.calls[self.turn]
            self.turn += 1
            output: Any = ResponseFunctionToolCall(
                type="function_call", call_id=f"call-{self.turn}", name=name, arguments=json.dumps(arguments))
        else:
            text = ResponseOutputText(type="output_text", text="done", annotations=[])
            output = ResponseOutputMessage(
                id="message", type="message", role="assistant", status="completed", content=[text])
        return ModelResponse(output=[output], usage=Usage(), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def options(**more: Any) -> E2BSandboxClientOptions:
    return E2BSandboxClientOptions(sandbox_type=E2BSandboxType.E2B, template="base", timeout=300, **more)


def shell(command: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "exec_command", {"cmd": command, "yield_time_ms": 20_000, **more}


async def run(model: Scripted, sandbox: SandboxRunConfig) -> None:
    agent = SandboxAgent(name="tester", instructions="Do what the script says.", model=model)
    result = await Runner.run(agent, "go", run_config=RunConfig(sandbox=sandbox), max_turns=20)
    assert result.final_output == "done"


async def state_of(sandbox_id: str) -> str:
    return (await AsyncSandbox.get_info(sandbox_id)).state.value


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(root="/home/user/work", entries={"given.txt": File(content=b"given by the manifest\n")})


async def test_an_agent_uses_its_tools(manifest: Manifest) -> None:
    session = await CLIENT.create(options=options(envs={"FROM_CREATE": "yes"}), manifest=manifest)
    model = Scripted([
        shell("cat given.txt; pwd; echo $FROM_CREATE; id -un"),
        shell("echo made > made.txt; exit 3"),
        shell("read line; echo got $line", tty=True, yield_time_ms=500),
    ])
    async with session:
        await run(model, SandboxRunConfig(session=session))
        assert "given by the manifest\n/home/user/work\nyes\nuser" in model.answers[0].replace("\r", "")
        assert "exited with code 3" in model.answers[1]
        assert (await session.read("made.txt")).read() in (b"made\n", "made\n")
        info = await AsyncSandbox.get_info(session._inner.state.sandbox_id)
        # What it asked for in the create.
        assert info.lifecycle == {"on_timeout": "pause", "auto_resume": True}
    await CLIENT.delete(session)


async def test_a_terminal_is_written_to(manifest: Manifest) -> None:
    session = await CLIENT.create(options=options(), manifest=manifest)
    async with session:
        begun = await session.pty_exec_start("read line; echo got $line", shell=True, tty=True, yield_time_s=0.5)
        assert begun.process_id is not None and begun.exit_code is None
        ended = await session.pty_write_stdin(session_id=begun.process_id, chars="it\n", yield_time_s=10)
        assert b"got it" in ended.output
        await session.pty_terminate_all()


async def test_it_pauses_on_exit_and_resumes_by_its_state(manifest: Manifest) -> None:
    session = await CLIENT.create(options=options(pause_on_exit=True), manifest=manifest)
    async with session:
        model = Scripted([shell("echo kept > kept.txt; (sleep 1000 > /dev/null 2>&1 & echo $! > pid)")])
        await run(model, SandboxRunConfig(session=session))
    sandbox_id = session._inner.state.sandbox_id
    assert await state_of(sandbox_id) == "paused"
    # As another process would, that only has what was stored.
    stored = json.loads(json.dumps(CLIENT.serialize_session_state(session.state)))
    state = CLIENT.deserialize_session_state(stored)
    again = await CLIENT.resume(state)
    assert again._inner.state.sandbox_id == sandbox_id and await state_of(sandbox_id) == "running"
    async with again:
        model = Scripted([shell("cat kept.txt; kill -0 $(cat pid) && echo alive; cat given.txt")])
        await run(model, SandboxRunConfig(session=again))
        assert "kept\nalive\ngiven by the manifest" in model.answers[0]
    await AsyncSandbox.kill(sandbox_id)


async def test_a_timeout_pauses_and_a_command_wakes(manifest: Manifest, until: Callable[..., Any]) -> None:
    session = await CLIENT.create(options=options(), manifest=manifest)
    async with session:
        sandbox_id = session._inner.state.sandbox_id
        await session.exec("echo kept > kept.txt")
        await AsyncSandbox.set_timeout(sandbox_id, 0)
        await until("it is paused", lambda: state_of(sandbox_id), "paused")
        result = await session.exec("cat kept.txt")
        assert (result.exit_code, result.stdout) == (0, b"kept\n")
        assert await state_of(sandbox_id) == "running"


@pytest.mark.parametrize("persistence", ["tar", "snapshot"])
async def test_its_workspace_comes_back_in_another_sandbox(
        manifest: Manifest, persistence: str, tmp_path: Any) -> None:
    """The first one is gone: a resume creates another, from the tar or from the snapshot it stored."""
    session = await CLIENT.create(
        options=options(workspace_persistence=persistence), manifest=manifest,
        snapshot=LocalSnapshotSpec(base_path=tmp_path))
    async with session:
        await run(Scripted([shell("mkdir -p deep; echo kept > deep/kept.txt")]), SandboxRunConfig(session=session))
    first = session._inner.state.sandbox_id
    await AsyncSandbox.kill(first)
    again = await CLIENT.resume(session.state)
    async with again:
        model = Scripted([shell("cat deep/kept.txt given.txt")])
        await run(model, SandboxRunConfig(session=again))
        assert "kept\ngiven by the manifest" in model.answers[0]
        assert again._inner.state.sandbox_id != first


async def test_the_usual_root_is_usable(until: Callable[..., Any]) -> None:
    """/workspace, which nobody has made, is made by the files API before any command runs in it."""
    session = await CLIENT.create(options=options())
    async with session:
        model = Scripted([shell("pwd; echo here > file; cat file")])
        await run(model, SandboxRunConfig(session=session))
        assert "/workspace\nhere" in model.answers[0], model.answers


async def test_a_session_of_ours_is_its_workspace() -> None:
    """The metadata of a create names a session: /workspace is the session's files, in the store."""
    for turn in range(2):
        session = await CLIENT.create(options=options(metadata={"session": "openai-agents"}))
        async with session:
            await run(Scripted([shell(f"echo {turn} >> artifacts/turns")]), SandboxRunConfig(session=session))
            shown = await session.exec("cat artifacts/turns")
            assert shown.stdout.decode().split() == [str(n) for n in range(turn + 1)]


async def test_a_port_is_found(manifest: Manifest) -> None:
    session = await CLIENT.create(options=options(exposed_ports=(8000,)), manifest=manifest)
    async with session:
        endpoint = await session.resolve_exposed_port(8000)
        assert endpoint.host == f"8000-{session._inner.state.sandbox_id}.sbx.localhost"

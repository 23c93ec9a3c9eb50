"""The code interpreter as a tool of LangChain's and LlamaIndex's agents, each with a scripted model. Neither has a package
of its own for the present releases of E2B: what their users write is a function around `run_code`, as here."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from e2b_code_interpreter import Sandbox
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import FunctionTool
from PIL import Image

STEPS = [
    "import pandas as pd\nsales = pd.DataFrame({'month': [1, 2, 3], 'sum': [10, 30, 20]})\nint(sales['sum'].sum())",
    "sales['nothing']",
    "import matplotlib.pyplot as plt\nplt.plot(sales['month'], sales['sum'])\nplt.title('Sales')\nplt.show()",
]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=300)
    yield made
    made.kill()


class Interpreter:
    """What the tool does, and the figures that it has drawn."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.figures: list[Any] = []

    def run(self, code: str) -> str:
        """Runs Python code. Variables last from one call to the next."""
        execution = self.sandbox.run_code(code)
        self.figures += [result for result in execution.results if result.png]
        if execution.error:
            return f"{execution.error.name}: {execution.error.value}"
        return execution.text or f"{len(execution.results)} results"


def check(answers: list[str], interpreter: Interpreter) -> None:
    assert answers[0] == "60"
    assert answers[1] == "KeyError: 'nothing'"
    (figure,) = interpreter.figures
    image = Image.open(io.BytesIO(base64.b64decode(figure.png)))
    assert image.width > 300 and len(image.convert("RGB").getcolors(1 << 24) or []) > 2
    assert (figure.chart.title, len(figure.chart.elements[0].points)) == ("Sales", 3)


class ScriptedLangChain(GenericFakeChatModel):
    def bind_tools(self, *_: Any, **__: Any) -> ScriptedLangChain:
        return self


def test_langchain(sandbox: Sandbox) -> None:
    interpreter = Interpreter(sandbox)
    turns = [AIMessage(content="", tool_calls=[{"name": "run", "args": {"code": code}, "id": f"call-{n}"}])
             for n, code in enumerate(STEPS)]
    model = ScriptedLangChain(messages=iter([*turns, AIMessage(content="done")]))
    agent = create_agent(model, [tool(interpreter.run)])
    result = agent.invoke({"messages": [{"role": "user", "content": "Do what the script says."}]})
    assert result["messages"][-1].content == "done"
    check([str(m.content) for m in result["messages"] if isinstance(m, ToolMessage)], interpreter)


class ScriptedLlamaIndex(FunctionCallingLLM):
    """Calls the tool once a turn, then says that it is done."""

    steps: list[str]

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="scripted", is_function_calling_model=True)

    def _prepare_chat_with_tools(self, tools: Any, user_msg: Any = None, chat_history: Any = None,
                                 **_: Any) -> dict[str, Any]:
        return {"messages": chat_history or []}

    def get_tool_calls_from_response(self, response: ChatResponse, **_: Any) -> list[ToolSelection]:
        code = response.message.additional_kwargs.get("code")
        return [ToolSelection(tool_id=f"call-{len(self.steps)}", tool_name="run", tool_kwargs={"code": code})] if code else []

    async def achat(self, messages: Any, **_: Any) -> ChatResponse:
        code = self.steps.pop(0) if self.steps else ""
        return ChatResponse(message=ChatMessage(role="assistant", content="" if code else "done",
                                                additional_kwargs={"code": code} if code else {}))

    async def astream_chat(self, messages: Any, **_: Any) -> Any:
        response = await self.achat(messages)

        async def stream() -> Any:
            yield response

        return stream()

    def chat(self, *_: Any, **__: Any) -> Any: raise NotImplementedError
    def complete(self, *_: Any, **__: Any) -> Any: raise NotImplementedError
    def stream_chat(self, *_: Any, **__: Any) -> Any: raise NotImplementedError
    def stream_complete(self, *_: Any, **__: Any) -> Any: raise NotImplementedError
    async def acomplete(self, *_: Any, **__: Any) -> Any: raise NotImplementedError
    async def astream_complete(self, *_: Any, **__: Any) -> Any: raise NotImplementedError


async def test_llama_index(sandbox: Sandbox) -> None:
    interpreter = Interpreter(sandbox)
    agent = FunctionAgent(tools=[FunctionTool.from_defaults(interpreter.run)], llm=ScriptedLlamaIndex(steps=list(STEPS)))
    result = await agent.run("Do what the script says.")
    assert str(result) == "done"
    check([str(call.tool_output.content) for call in result.tool_calls], interpreter)

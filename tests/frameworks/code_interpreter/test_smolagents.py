"""smolagents' code agent with its E2B executor, unmodified, and a scripted model: every step is code for the
interpreter, and the last one ends with an exception that carries the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from e2b import SandboxQuery
from e2b_code_interpreter import Sandbox
from PIL import Image
from smolagents import ChatMessage, CodeAgent, Model, tool
from smolagents.models import MessageRole
from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import E2BExecutor
from smolagents.utils import AgentError

MARK = {"made-by": "smolagents"}


class Scripted(Model):
    """Answers with one piece of code after the other."""

    def __init__(self, *steps: str) -> None:
        super().__init__(model_id="scripted")
        self.steps = list(steps)
        self.asked: list[str] = []

    def generate(self, messages: Any, **_: Any) -> ChatMessage:
        self.asked.append(str(messages))
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"Thought: next\n<code>\n{self.steps.pop(0)}\n</code>")


@tool
def price_of(item: str) -> int:
    """Tells what an item costs.

    Args:
        item: The item's name.
    """
    return {"tea": 3, "cake": 5}[item]


@pytest.fixture
def executor() -> Iterator[E2BExecutor]:
    made = E2BExecutor([], AgentLogger(level=LogLevel.OFF), metadata=MARK, timeout=300)
    yield made
    made.cleanup()


def test_an_agent_runs_its_code_in_the_sandbox() -> None:
    """Its tools are sent there, variables last from step to step, and an error is told to the model."""
    # One text: a kernel may send what is printed in parts, between which smolagents puts line ends.
    model = Scripted("cost = price_of('tea') + price_of('cake')\nprint(f'cost {cost}')",
                     "cost / 0",
                     "final_answer({'cost': cost, 'twice': cost * 2})")
    agent = CodeAgent(tools=[price_of], model=model, executor_type="e2b", verbosity_level=LogLevel.OFF,
                      executor_kwargs={"metadata": MARK, "timeout": 300})
    try:
        assert agent.run("What does it cost?") == {"cost": 8, "twice": 16}
        assert len(Sandbox.list(query=SandboxQuery(metadata=MARK)).next_items()) == 1
    finally:
        agent.cleanup()
    assert "cost 8" in model.asked[1]
    assert "ZeroDivisionError" in model.asked[2]
    assert Sandbox.list(query=SandboxQuery(metadata=MARK)).next_items() == []


def test_results_and_errors_of_the_executor(executor: E2BExecutor) -> None:
    assert executor.run_code_raise_errors("x = 6 * 7\nx").output == "42"
    assert executor.run_code_raise_errors("print('said')").logs.strip() == "said"
    image = executor.run_code_raise_errors(
        "from PIL import Image\nImage.new('RGB', (40, 30), (255, 0, 0))").output
    assert isinstance(image, Image.Image) and image.size == (40, 30)
    # It takes the picture as JPEG, where red is nearly red.
    red, green, blue = image.convert("RGB").getpixel((5, 5))
    assert red > 250 and green < 5 and blue < 5
    with pytest.raises(AgentError, match="NameError"):
        executor.run_code_raise_errors("nothing_of_that_name")
    assert executor.run_code_raise_errors("x").output == "42"


def test_packages_are_installed_by_a_line_of_shell(executor: E2BExecutor) -> None:
    """As `install_packages` sends them. The index may be out of reach here: pip itself has to answer."""
    code = executor.run_code_raise_errors("!pip --version\n%pip --version")
    assert code.logs.count("pip ") >= 2 and "python3" in code.logs
